"""What a GPU would refuse, run on a pretend one, in a process of its own: a device cannot be taken out of torch again.

To see more of a failure: `python -m pytest tests/gpu_rules/check_*.py -k NAME`.
"""

import os
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
import torch

HERE = Path(__file__).parent
CHECKS = sorted(path.name for path in HERE.glob("check_*.py"))


@pytest.fixture(scope="module")
def outcome(tmp_path_factory: pytest.TempPathFactory) -> ElementTree.Element:
    """The report of all checks."""
    report = tmp_path_factory.mktemp("gpu_rules") / "report.xml"
    own = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST", "COV_"))}
    ended = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-q", f"--junitxml={report}", *map(str, CHECKS)],
        cwd=HERE,
        env={**own, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu"},
        capture_output=True,
        text=True,
    )
    assert report.exists(), ended.stdout + ended.stderr
    return ElementTree.parse(report).getroot()


@pytest.mark.parametrize("file", CHECKS)
def test_checks(file: str, outcome: ElementTree.Element) -> None:
    cases = [case for case in outcome.iter("testcase") if case.get("classname", "").endswith(file.removesuffix(".py"))]
    failures = [
        f"{case.get('name')}\n{problem.text}"
        for case in cases
        for problem in case
        if problem.tag in ("failure", "error")
    ]
    assert cases and not failures, "\n\n".join(failures)


def test_this_process_knows_nothing_of_the_device(outcome: ElementTree.Element) -> None:
    assert torch._C._get_privateuse1_backend_name() == "privateuseone"
    assert not torch.__future__.get_swap_module_params_on_conversion()
    with pytest.raises(RuntimeError):
        torch.device("pretend")
