"""TensorBoard shows what metrics.jsonl holds; of a killed run: tests/student_train/run/test_train_faults.py."""

from collections.abc import Callable
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from alignkd.student_train import trainer
from alignkd.student_train.job import TrainJob
from alignkd.student_train.metrics.tensorboard import TensorBoardLog
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
    job = make_job(many_store, steps=1, report_to="none")
    train(job)
    assert not (job.train.output / "tensorboard").exists()


def test_a_run_killed_before_its_first_checkpoint_is_shown_once(tmp_path: Path) -> None:
    """It starts from the beginning, with a validation before the first step."""
    for loss in (2.0, 1.0):
        log = TensorBoardLog(tmp_path, 0)
        log.add_validation({"step": 0, "loss": loss})
        log.add({"step": 1, "loss": loss})
        log.close()
    shown = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    for tag, step in (("validation/total", 0), ("loss/total", 1)):
        assert [(point.step, point.value) for point in shown.Scalars(tag)] == [(step, 1.0)]
