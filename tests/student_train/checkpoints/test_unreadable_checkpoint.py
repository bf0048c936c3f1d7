"""A checkpoint that cannot be opened stops a resumed run; only a damaged one is passed over."""

import os
from pathlib import Path
from typing import Any

import pytest
import torch

from alignkd.storage.schema.sealed_json import seal
from alignkd.student_train.checkpoints.checkpoint import STATE, find_checkpoint
from alignkd.student_train.distributed.ranks import Ranks
from alignkd.student_train.errors import TrainError, writing


class Alone(Ranks):
    """One rank without a process group."""

    def from_first(self, value: Any) -> Any:
        return value


ALONE = Alone(0, 1, torch.device("cpu"))


def make_checkpoint(path: Path) -> None:
    path.mkdir(parents=True)
    (path / STATE).write_bytes(seal({"step": 1, "settings": {"is": "another"}, "files": {}}))


def test_permission_and_file_servers_are_no_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    newest = tmp_path / "checkpoints" / "step-00000002"
    for step in (1, 2):
        make_checkpoint(tmp_path / "checkpoints" / f"step-0000000{step}")
    opened = os.open

    def refuses(path: Any, *arguments: Any) -> int:
        if Path(path) == newest / STATE:
            raise PermissionError(13, "Permission denied", str(path))
        return opened(path, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", refuses)
        with pytest.raises(TrainError, match=r"step-00000002/state\.json: cannot be read \(Permission denied\)"):
            find_checkpoint(tmp_path / "checkpoints", {}, ALONE)
    (newest / STATE).unlink()  # damage: the one before it is taken, and refused for its settings
    with pytest.raises(TrainError, match="is was another"):
        find_checkpoint(tmp_path / "checkpoints", {}, ALONE)


@pytest.mark.parametrize(
    ("error", "step"),
    [
        (OSError(28, "No space left on device"), "free some space"),
        (OSError(30, "Read-only file system"), "mounted read-only"),
        (FileNotFoundError(2, "No such file or directory", "/gone/weights"), "/gone/weights.*check the path"),
    ],
)
def test_writing_names_the_step_for_its_cause(error: OSError, step: str) -> None:
    with (
        pytest.raises(TrainError, match=rf"^out: cannot be written \({error.strerror}.*{step}") as caught,
        writing(Path("out")),
    ):
        raise error
    assert ("space" in str(caught.value)) == (error.errno == 28)
