"""A torchvision whose compiled operators do not fit this torch can be imported all the same."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

REPAIR = "from alignkd.vlm.torchvision_import import make_torchvision_importable; make_torchvision_importable(); "
REGISTRATIONS = """
import torch

@torch.library.register_fake("torchvision::nms")
def meta_nms(dets):
    return dets
"""


@pytest.fixture
def foreign(tmp_path: Path) -> Path:
    """A folder with a package `torchvision` that registers a function for an operator that its library lacks."""
    package = tmp_path / "torchvision"
    package.mkdir()
    (package / "__init__.py").write_text("from torchvision import _meta_registrations\nUSED = True\n")
    (package / "_meta_registrations.py").write_text(REGISTRATIONS)
    (package / "_C.so").write_bytes(b"compiled for another torch")
    return tmp_path


def run(code: str, folder: Path) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([str(folder), *filter(None, sys.path)])
    return subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True
    )


def test_it_fails_alone_and_works_after_the_repair(foreign: Path) -> None:
    alone = run("import torchvision", foreign)
    assert alone.returncode == 1 and "operator torchvision::nms does not exist" in alone.stderr
    again = "make_torchvision_importable.cache_clear(); print(make_torchvision_importable())"  # then it does nothing
    found = "print(torchvision.USED, torchvision.__file__)"
    repaired = run(f"{REPAIR}import torchvision; {found}; {again}", foreign)
    assert repaired.returncode == 0, repaired.stderr
    assert repaired.stdout.split() == ["True", str(foreign / "torchvision" / "__init__.py"), "None"]
