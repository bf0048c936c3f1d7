"""Trackers as if nobody had used them on this machine."""

import os
from pathlib import Path

import pytest


@pytest.fixture
def fresh_trackers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No login, nothing in the environment, a place of its own for trackio, which is returned."""
    for name in [name for name in os.environ if name.startswith(("WANDB_", "TRACKIO_", "NETRC"))]:
        monkeypatch.delenv(name)
    (tmp_path / "home").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    # a busy machine needs a while to import the libraries
    monkeypatch.setattr("alignkd.student_train.metrics.trackers.follower.CLOSE_SECONDS", 120.0)
    return tmp_path / "trackio"
