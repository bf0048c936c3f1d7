"""TensorBoard shows what metrics.jsonl holds; of a killed run: tests/student_train/run/test_train_faults.py."""

from collections.abc import Callable
from pathlib import Path

import pytest

from alignkd.student_train import trainer
from alignkd.student_train.job import TrainJob
from alignkd.student_train.trainer import train

MakeJob = Callable[..., TrainJob]


def test_a_step_that_is_done_twice_is_shown_once(
    many_store: Path,
    make_job: MakeJob,
    tensorboard_equals_metrics: Callable[[Path], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An error in step 4, after the checkpoint at step 2."""
    job = make_job(many_store, steps=5, checkpoint_every=2, micro_batch=4)
    original, calls = trainer._optimiser_step, [0]

    def failing(*args: object) -> object:
        calls[0] += 1
        if calls[0] == 4:
            raise RuntimeError("as a bug would")
        return original(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(trainer, "_optimiser_step", failing)
    with pytest.raises(RuntimeError):
        train(job)
    train(job)
    tensorboard_equals_metrics(job.train.output)


def test_it_can_be_switched_off(many_store: Path, make_job: MakeJob) -> None:
    job = make_job(many_store, steps=1, tensorboard=False)
    train(job)
    assert not (job.train.output / "tensorboard").exists()
