"""The output folder: whose it is, who writes there, and what is never touched."""

import errno
import fcntl
import json
import logging
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from alignkd.student_train.distributed.ranks import Ranks, start_ranks
from alignkd.student_train.errors import TrainError
from alignkd.student_train.job import TrainJob
from alignkd.student_train.output import CONFIG, METRICS, read_configuration
from alignkd.student_train.run.output.claim import LOCK, check_output, claimed
from alignkd.student_train.trainer import train

OF_A_RUN = {"data": {}, "store": {"path": "store"}, "train": {"steps": 1}}


def test_a_checkpoint_of_somebody_else_is_named_and_left_as_it_is(tmp_path: Path) -> None:
    model = {name: name.encode() for name in ("config.json", "model.safetensors", "metrics.jsonl", "student")}
    for name, content in model.items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / "config.json").write_text('{"architectures": ["MobileLlamaForCausalLM"]}')
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    named = r"contains config\.json, metrics\.jsonl, model\.safetensors and 1 more, but no"
    with pytest.raises(TrainError, match=named), claimed(tmp_path, start_ranks(), configuration=OF_A_RUN):
        pass
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize(
    "name", ["run.yaml", "slurm-1.out", "train.log", ".DS_Store", ".nfs01", "lost+found/", "Thumbs.db", "@eaDir/"]
)
def test_logs_the_configuration_and_droppings_may_be_there_first(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.mkdir() if name.endswith("/") else path.touch()
    check_output(tmp_path)
    (tmp_path / "notes.txt").touch()
    with pytest.raises(TrainError, match=r"contains notes\.txt, but no training run \(run\.lock\); choose a new"):
        check_output(tmp_path)
    (tmp_path / LOCK).touch()
    check_output(tmp_path)


def test_the_output_of_another_run_holds_no_second_one(tmp_path: Path) -> None:
    """Removing the first run would remove the second one."""
    with claimed(tmp_path / "first", start_ranks()):
        pass
    inside = tmp_path / "first" / "checkpoints" / "second"
    with pytest.raises(TrainError, match=f"second is inside {tmp_path / 'first'}, the output of another training run"):
        check_output(inside)
    check_output(tmp_path / "second")


def test_what_is_no_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "lost").symlink_to(tmp_path / "nowhere")
    for name in ("file", "lost"):
        with pytest.raises(TrainError, match=f"{name} is not a folder; choose another output"):
            check_output(tmp_path / name)
    check_output(tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_an_output_begun_by_an_earlier_version_is_gone_on_with(tmp_path: Path) -> None:
    """It had no marker, and kept its configuration as config.json."""
    (tmp_path / "config.json").write_text(json.dumps(OF_A_RUN))
    (tmp_path / METRICS).touch()
    (tmp_path / "checkpoints").mkdir()
    assert read_configuration(tmp_path) == OF_A_RUN
    newer = OF_A_RUN | {"student": {}}
    with claimed(tmp_path, start_ranks(), configuration=newer):
        assert not (tmp_path / CONFIG).exists()  # a resumed run: its settings may yet be refused
    assert read_configuration(tmp_path) == newer


def test_a_fresh_run_keeps_its_configuration_at_once_a_refused_resume_never(tmp_path: Path) -> None:
    output, ranks = tmp_path / "a" / "b", start_ranks()
    with claimed(output, ranks, configuration=OF_A_RUN):
        assert json.loads((output / CONFIG).read_text()) == OF_A_RUN
    (output / METRICS).touch()
    with pytest.raises(TrainError, match="other settings"), claimed(output, ranks, configuration=OF_A_RUN | {"x": 1}):
        raise TrainError("other settings")
    assert json.loads((output / CONFIG).read_text()) == OF_A_RUN
    assert sorted(path.name for path in output.iterdir()) == [METRICS, CONFIG, LOCK]


def test_a_second_writer_is_refused_and_told_who_is_the_first(tmp_path: Path) -> None:
    ranks = start_ranks()
    with claimed(tmp_path, ranks):
        with pytest.raises(TrainError) as error, claimed(tmp_path, ranks, configuration=OF_A_RUN):
            pass
        assert f"is in use: process {os.getpid()} on host {socket.gethostname()} trains there since" in str(error.value)
        assert "stop it first, or choose another output" in str(error.value) and "\n" not in str(error.value)
        assert not (tmp_path / CONFIG).exists()
        (tmp_path / LOCK).write_text("")  # between taking the lock and writing the name
        with pytest.raises(TrainError, match="in use: another process trains there"), claimed(tmp_path, ranks):
            pass
    with claimed(tmp_path, ranks):  # and free again
        pass


def test_a_forked_child_does_not_keep_the_lock(tmp_path: Path) -> None:
    """Data workers inherit every descriptor; one that hangs must not hold the folder."""
    go = os.pipe()
    with claimed(tmp_path, start_ranks()):
        child = os.fork()
        if child == 0:
            os.read(go[0], 1)
            os._exit(0)
    try:
        with claimed(tmp_path, start_ranks()):
            pass
    finally:
        os.write(go[1], b"x")
        os.waitpid(child, 0)
        for end in go:
            os.close(end)


def test_every_rank_ends_when_the_first_is_refused(tmp_path: Path) -> None:
    class SecondRank(Ranks):
        def from_first(self, value: Any) -> Any:
            assert value is None
            return "output o is in use"

    second = SecondRank(1, 2, torch.device("cpu"))
    with pytest.raises(TrainError, match="output o is in use"), claimed(tmp_path / "o", second):
        pass
    assert not (tmp_path / "o").exists()  # only the first rank writes


def test_without_locks_a_run_goes_on_with_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def no_locks(*_: Any) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", no_locks)
    with caplog.at_level(logging.WARNING), claimed(tmp_path, start_ranks()):
        pass
    (record,) = caplog.records
    assert "has no locks (No locks available)" in record.getMessage() and "start only one" in record.getMessage()


HOLD = """
import fcntl, sys
file = open(sys.argv[1])
fcntl.flock(file, fcntl.LOCK_EX)
print("held", flush=True)
sys.stdin.read()
"""


def test_a_lock_ends_with_its_process_however_it_ends(tmp_path: Path) -> None:
    (tmp_path / LOCK).write_text(json.dumps({"host": "elsewhere", "pid": 77, "since": "2026-01-01T00:00:00+00:00"}))
    command = [sys.executable, "-c", HOLD, str(tmp_path / LOCK)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None and other.stdout.readline() == "held\n"
        with pytest.raises(TrainError, match="process 77 on host elsewhere"), claimed(tmp_path, start_ranks()):
            pass
        other.kill()
        other.wait()
        with claimed(tmp_path, start_ranks()):
            pass


def test_training_holds_its_output(many_store: Path, make_job: Callable[..., TrainJob]) -> None:
    job = make_job(many_store, steps=1)
    with claimed(job.train.output, start_ranks()):
        with pytest.raises(TrainError, match=f"in use: process {os.getpid()}"):
            train(job)
        assert not (job.train.output / METRICS).exists()
    assert train(job).step == 1
