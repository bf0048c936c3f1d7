"""`alignkd train export`: the student at a checkpoint of a run, from the run's own configuration."""

from dataclasses import replace
from pathlib import Path

from pydantic import ValidationError

from alignkd.pipeline.config.problems import problem_of
from alignkd.pipeline.config.run_config import RunConfig
from alignkd.pipeline.runs.train_files import VALIDATION, best_validation
from alignkd.student_train.errors import TrainError
from alignkd.student_train.job import TrainJob
from alignkd.student_train.output import CONFIG, read_configuration
from alignkd.student_train.run.export_checkpoint import ExportedStudent, export_checkpoint


def run_export(output: Path, *, step: int | None, best: bool, folder: Path) -> ExportedStudent:
    """Export student and adapters of a checkpoint of the run in `output` into `folder`.

    Args:
        step: optimiser steps of the checkpoint; None takes the newest, or that of the lowest validation loss.
        best: take the step of the lowest validation loss.

    Raises:
        TrainError: no usable configuration, validation or checkpoint; else as `export_checkpoint`.
    """
    if best:
        step = best_step(output)
    return export_checkpoint(job_of(output), step, folder)


def job_of(output: Path) -> TrainJob:
    """The job of the run in `output`, which may have been moved.

    Raises:
        TrainError: the run kept no configuration, or one that this version cannot read.
    """
    document = read_configuration(output)
    if document is None:
        raise TrainError(
            f"{output}: has no {CONFIG} with the configuration of a training run; give the output folder of "
            "`alignkd train`"
        )
    try:
        config = RunConfig.model_validate(document)
    except ValidationError as error:
        problem = problem_of(dict(error.errors()[0]), RunConfig)
        raise TrainError(
            f"{output / CONFIG}: {problem}; export by the version of alignkd that trained the run"
        ) from error
    if config.student is None or config.train is None:
        raise TrainError(f"{output / CONFIG}: has no section student or train; restore it")
    job = config.train_job()
    return replace(job, train=job.train.model_copy(update={"output": output}))


def best_step(output: Path) -> int:
    """The step of the lowest validation loss.

    Raises:
        TrainError: the run has no validation loss.
    """
    found = best_validation(output)
    if found is None:
        raise TrainError(f"{output}: has no loss in {VALIDATION}, which --best needs; choose a checkpoint by --step")
    return int(found["step"])
