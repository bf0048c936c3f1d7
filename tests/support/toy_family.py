"""Adds the toy family of `toy_families` for the length of a test: its folder and its name, nothing else."""

from pathlib import Path

import pytest

from alignkd.vlm import families
from alignkd.vlm.families import open as opening


def register(monkeypatch: pytest.MonkeyPatch) -> None:
    """A family is found below `alignkd.vlm.families`, where the toy's folder is not."""
    monkeypatch.setattr(families, "__path__", [*families.__path__, str(Path(__file__).parent / "toy_families")])
    monkeypatch.setattr(opening, "FAMILIES", ("toy", *opening.FAMILIES))
