"""Runs `check_liger.py` in a process of its own: Triton's interpreter is chosen when triton is imported."""

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

HERE = Path(__file__).parent


def test_liger_equals_torch(request: pytest.FixtureRequest) -> None:
    for library in ("triton", "liger_kernel"):
        if find_spec(library) is None:
            pytest.skip(f"needs {library}, which `make test-kernels` puts into a folder of its own")
    own = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST", "COV_"))}
    path = os.pathsep.join([str(HERE.parents[1] / "support"), *filter(None, [own.get("PYTHONPATH")])])
    more = ["--all-families"] if request.config.getoption("--all-families") else []
    plugins = ["-p", "no:cacheprovider", "-p", "triton_interpreter"]
    ended = subprocess.run(
        [sys.executable, "-m", "pytest", *plugins, "-q", *more, "check_liger.py"],
        cwd=HERE,
        env={**own, "PYTHONPATH": path, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
