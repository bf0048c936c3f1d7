"""`alignkd train export`: the student at a checkpoint of a run, from the run's own configuration."""

from dataclasses import replace
from pathlib import Path

from pydantic import ValidationError

from alignkd.pipeline.config.problems import problem_of
from alignkd.pipeline.config.run_config import RunConfig
from alignkd.student_train.errors import TrainError
from alignkd.student_train.job import TrainJob
from alignkd.student_train.output import CONFIG, read_configuration
from alignkd.student_train.run.output.export_checkpoint import ExportedStudent, export_checkpoint
from alignkd.student_train.validation.best import best_step


def run_export(output: Path, *, step: int | None, best: bool, folder: Path) -> ExportedStudent:
    """Export student and adapters of a checkpoint of the run in `output` into `folder`.

    Args:
        step: optimiser steps of the checkpoint; None takes the newest, or the best one.
        best: take the step of the best validation.

    Raises:
        TrainError: no usable configuration, validation or checkpoint; else as `export_checkpoint`.
    """
    if best and (step := best_step(output)) is None:
        raise TrainError(f"{output}: has no checkpoint of a best validation, which --best needs; choose one by --step")
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
