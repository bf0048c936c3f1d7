"""The trackers that a run has chosen."""

import hashlib
import json
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from alignkd.student_train.config import TrainConfig
from alignkd.student_train.job import TrainJob
from alignkd.student_train.metrics.tensorboard import TensorBoardLog
from alignkd.student_train.metrics.tracker import Tracker
from alignkd.student_train.metrics.trackers.follower import Follower
from alignkd.student_train.metrics.trackers.installed import SERVICES
from alignkd.student_train.metrics.trackers.kept import ANY_SETTINGS, kept_file
from alignkd.student_train.metrics.trackers.no_secrets import without_secrets
from alignkd.student_train.metrics.trackers.service import TrackedRun
from alignkd.student_train.output import read_configuration, read_finished


def trackers_of(job: TrainJob, config: TrainConfig, settings: Mapping[str, Any], *, done: int) -> list[Tracker]:
    """Open every tracker of `train.report_to`.

    Args:
        job: what is trained.
        config: its training settings, the length in steps.
        settings: those that decide what is learnt.
        done: optimiser steps done before.

    Raises:
        TrainError: the folder of TensorBoard cannot be written.
    """
    found: list[Tracker] = [TensorBoardLog(config.output, done)] if "tensorboard" in config.report_to else []
    configuration = job.configuration or {"train": config.model_dump(mode="json"), "student": str(job.student)}
    about = {
        "done": done,
        "settings": hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode()).hexdigest()[:16],
        "tags": _tags(config, uses_lora=job.trained.choice == "lora"),
    }
    names = [name for name in SERVICES if name in config.report_to]
    return found + [Follower(_described(name, config, configuration, **about)) for name in names]


def send_scores(config: TrainConfig, scores: Mapping[str, float], *, uses_lora: bool) -> None:
    """Add benchmark scores of the student to a finished run, where wandb and trackio have it.

    Figures that they did not get before are sent first. The same scores are sent once. A tracker that fails is a line
    of warning.

    Args:
        config: training settings of the run.
        scores: by name, in the units of Table 1.
        uses_lora: whether the run trained LoRA.
    """
    names = [name for name in SERVICES if name in config.report_to and kept_file(config.output, name).exists()]
    finished = read_finished(config.output) if names and scores else None
    if finished is None:
        return
    config = config.model_copy(update={"steps": finished["step"], "epochs": None})
    tags = _tags(config, uses_lora=uses_lora)
    about = {"done": config.num_steps, "settings": ANY_SETTINGS, "scores": dict(scores), "tags": tags}
    configuration = read_configuration(config.output) or {}
    for follower in [Follower(_described(name, config, configuration, **about)) for name in names]:
        follower.close()


def _described(tracker: str, config: TrainConfig, configuration: Mapping[str, Any], **more: Any) -> TrackedRun:
    output = config.output.resolve()
    about = {"alignkd": _version(), "output": str(output), "steps": config.num_steps}
    return TrackedRun(
        tracker=tracker,
        output=output,
        project=config.report_project,
        name=output.name,
        group=output.parent.name,
        configuration=without_secrets({**about, **configuration}),
        steps=config.num_steps,
        **more,
    )


def _tags(config: TrainConfig, *, uses_lora: bool) -> tuple[str, ...]:
    """What runs are told apart by at a glance."""
    preference = None if config.preference == "none" else config.preference
    return tuple(filter(None, (config.preset, preference, "lora" if uses_lora else None)))


def _version() -> str:
    try:
        return version("alignkd")
    except PackageNotFoundError:
        return "unknown"
