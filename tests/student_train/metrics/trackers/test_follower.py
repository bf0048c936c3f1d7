"""The processes of wandb and trackio: a server that fails and comes back, a killed process, other ranks."""

import logging
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tracked_runs import tracked, write_steps
from wandb_server import wandb_server

from alignkd.student_train.config import TrainConfig
from alignkd.student_train.distributed.ranks import Ranks
from alignkd.student_train.job import TrainJob
from alignkd.student_train.metrics.log import RunLog
from alignkd.student_train.metrics.trackers import follower
from alignkd.student_train.metrics.trackers.follower import Follower
from alignkd.student_train.trainer import train

MakeJob = Callable[..., TrainJob]


def part(output: Path, steps: list[int], tracker: str = "wandb", **about: Any) -> None:
    """The steps that one process does."""
    output.mkdir(exist_ok=True)
    write_steps(output, [], [])
    one = Follower(tracked(output, tracker=tracker, done=steps[0] - 1, **about))
    write_steps(output, steps, [steps[-1]])
    one.add({})
    one.close()


def test_a_server_that_was_away_has_every_row_once(
    fresh_trackers: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Online, then without a server, then online; the steps of the second part are sent by the third."""
    monkeypatch.setenv("WANDB_API_KEY", "0123456789abcdef0123456789abcdef01234567")
    with wandb_server() as server:
        monkeypatch.setenv("WANDB_BASE_URL", server.address)
        part(tmp_path / "out", [1, 2], configuration={"train": {"seed": 3}})
        server.working.clear()
        with monkeypatch.context() as patch:
            patch.setattr(follower, "CLOSE_SECONDS", 1.0)
            part(tmp_path / "out", [3])
        assert [record.levelno for record in caplog.records].count(logging.WARNING) == 1
        assert "did not get every step within 1 s" in caplog.text
        server.working.set()
        part(tmp_path / "out", [4])
    ((name, rows),) = server.history.items()
    found = [(row["_step"], row["step"], row.get("loss/total"), row.get("validation/total")) for row in rows]
    assert found == [
        (2, 1, 1.0, None), (4, 2, 0.5, None), (5, 2, None, 1.0), (6, 3, 1.0 / 3, None), (7, 3, None, 1.0),
        (8, 4, 0.25, None), (9, 4, None, 1.0),
    ]  # fmt: skip
    assert server.configs[name]["train"]["value"] == {"seed": 3}


def test_parts_without_a_network_are_one_run_when_they_are_uploaded(
    fresh_trackers: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "0123456789abcdef0123456789abcdef01234567")
    with wandb_server() as server:
        monkeypatch.setenv("WANDB_BASE_URL", server.address)
        with monkeypatch.context() as patch:
            patch.setenv("WANDB_MODE", "offline")
            for steps in ([1, 2], [3]):
                part(tmp_path / "out", steps)
        folders = sorted((tmp_path / "out" / "wandb").glob("offline-run-*"))
        assert len(folders) == 2 and not server.history
        command = [sys.executable, "-m", "wandb", "sync", "--yes", *map(str, folders)]
        subprocess.run(
            command, cwd=tmp_path, check=True, timeout=120, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
    assert [[row["_step"] for row in rows] for rows in server.history.values()] == [[2, 4, 5, 6, 7]]


def test_trackers_that_do_not_work_change_nothing(
    many_store: Path,
    make_job: MakeJob,
    read_metrics: Callable[[Path], Any],
    fresh_trackers: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """No login at wandb, and a file where the folder of trackio should be: one line of warning each, or two."""
    fresh_trackers.write_text("in the way")
    settings: dict[str, Any] = {"steps": 2, "micro_batch": 5}
    train(make_job(many_store, output=tmp_path / "plain", report_to="none", **settings))
    caplog.clear()
    train(make_job(many_store, output=tmp_path / "tracked", report_to=["wandb", "trackio"], **settings))
    assert read_metrics(tmp_path / "tracked") == read_metrics(tmp_path / "plain")
    for name in ("student/model.safetensors", "adapters.safetensors"):
        assert (tmp_path / "tracked" / name).read_bytes() == (tmp_path / "plain" / name).read_bytes()
    warnings = [record.getMessage() for record in caplog.records if record.name == follower.__name__]
    assert any(text.startswith("wandb: ") and "No API key" in text for text in warnings), warnings
    assert any(text.startswith("trackio: ") for text in warnings), warnings
    assert len(warnings) <= 4 and not any("\n" in text for text in warnings)


def test_a_process_that_is_killed_is_one_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_steps(tmp_path, [1], [])
    one = Follower(tracked(tmp_path))
    assert one._process is not None
    os.killpg(one._process.pid, signal.SIGKILL)
    one._process.wait(30)
    for _ in range(3):
        one.add({})
    one.close()
    assert [record.getMessage() for record in caplog.records] == [
        "wandb: its process ended with code -9; the training goes on without it"
    ]


def test_what_else_the_process_prints_is_no_message(
    fresh_trackers: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A `sitecustomize` of the machine may print before the process begins."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text("""print('welcome\\n1\\n{"kind": "x"}\\n[2]')""")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "site"))
    monkeypatch.setenv("WANDB_MODE", "disabled")
    with caplog.at_level(logging.INFO):
        part(tmp_path / "out", [1])
    assert [record.getMessage() for record in caplog.records] == ["wandb: disabled by WANDB_MODE"]


def test_only_the_first_rank_has_trackers(tmp_path: Path) -> None:
    def opened() -> list[Any]:
        raise AssertionError("a tracker was opened")

    ranks = Ranks(rank=1, world_size=2, device=torch.device("cpu"))
    config = TrainConfig(output=tmp_path / "out", steps=2, report_to=["tensorboard", "wandb", "trackio"])
    with RunLog(config, ranks, opened, done=0) as log:
        log.append({"step": 1, "loss": 1.0})
    assert not (tmp_path / "out").exists()
