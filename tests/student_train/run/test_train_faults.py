"""Real processes: killed at the worst moments, or several ranks, and still the same run."""

import signal
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from processes_of_two import ended, run_two
from safetensors.torch import load_file

from alignkd.student_train.job import TrainJob
from alignkd.student_train.trainer import train

MakeJob = Callable[..., TrainJob]
ReadMetrics = Callable[[Path], list[dict[str, Any]]]


def test_killed_and_resumed_equals_unbroken(
    many_store: Path,
    make_job: MakeJob,
    start_child: Any,
    one_thread: None,
    read_metrics: ReadMetrics,
    tensorboard_equals_metrics: Callable[[Path], None],
    tmp_path: Path,
) -> None:
    """kill -9 in a step, between two files of a checkpoint and in the export; bit for bit in the end."""
    settings: dict[str, Any] = {"steps": 7, "micro_batch": 2, "global_batch": 4, "checkpoint_every": 2}
    unbroken = make_job(many_store, output=tmp_path / "unbroken", **settings)
    train(unbroken)
    job = make_job(many_store, output=tmp_path / "killed", **settings)
    blows = [
        ("trainer", "_optimiser_step", 4, signal.SIGKILL),  # step 4, resumed from 2
        ("checkpoint", "save_tensors", 2, signal.SIGKILL),  # checkpoint 4 with weights but no moments
        ("export", "fsync_path", 1, signal.SIGKILL),
    ]
    for blow in blows:
        ended(start_child(job, blow), -signal.SIGKILL)
        assert not (job.train.output / "finished.json").exists()
    ended(start_child(job))

    assert read_metrics(job.train.output) == read_metrics(unbroken.train.output)
    tensorboard_equals_metrics(job.train.output)
    for name in ("student/model.safetensors", "adapters.safetensors"):
        assert (job.train.output / name).read_bytes() == (unbroken.train.output / name).read_bytes()
    assert sorted(path.name for path in job.train.output.iterdir()) == sorted(
        path.name for path in unbroken.train.output.iterdir()
    )


def test_one_rank_two_ranks_one_rank(
    many_store: Path, make_job: MakeJob, start_child: Any, one_thread: None, read_metrics: ReadMetrics, tmp_path: Path
) -> None:
    """The run goes over from one process to two and back; the same global batches, the same losses to rounding.

    Three of ten samples are text-only, so with one sample per pass the two ranks often differ in having an image.
    """
    settings: dict[str, Any] = {"steps": 8, "global_batch": 4}
    alone = make_job(many_store, output=tmp_path / "alone", micro_batch=4, **settings)
    train(alone)
    job = make_job(many_store, output=tmp_path / "changing", micro_batch=1, **settings)

    ended(start_child(job, ("trainer", "_optimiser_step", 2, signal.SIGTERM)), 128 + signal.SIGTERM)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(probe.getsockname()[1]), "WORLD_SIZE": "2"}
    blows = [None, ("trainer", "_optimiser_step", 4, signal.SIGTERM)]  # only the second rank hears the signal
    pair = [start_child(job, blows[r], RANK=str(r), LOCAL_RANK=str(r), **place) for r in range(2)]
    for child in pair:
        _, errors = child.communicate(timeout=600)
        assert child.returncode == 128 + signal.SIGTERM, errors
    assert len(read_metrics(job.train.output)) == 6
    train(job)

    for changing, reference in zip(read_metrics(job.train.output), read_metrics(alone.train.output), strict=True):
        for name, value in reference.items():
            assert changing[name] == (value if value is None else pytest.approx(value, rel=2e-5)), name
    weights, expected = (load_file(j.train.output / "student" / "model.safetensors") for j in (job, alone))
    for name, value in expected.items():
        # AdamW turns the sign of a gradient near 0 into a whole step of the learning rate.
        assert (weights[name] - value).abs().max() < 2e-4, name


def test_what_the_first_of_two_ranks_cannot_read_ends_both(
    many_store: Path, make_job: MakeJob, start_child: Any, tmp_path: Path
) -> None:
    """Only the first rank hashes the adapters; the other one must not wait for it."""
    job = make_job(many_store, steps=2, micro_batch=1, global_batch=2, adapters=tmp_path / "gone.safetensors")
    for errors in run_two(start_child, job, code=1):
        assert "gone.safetensors: " in errors
