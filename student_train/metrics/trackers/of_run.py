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
from alignkd.student_train.metrics.trackers.no_secrets import without_secrets
from alignkd.student_train.metrics.trackers.service import TrackedRun


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
    return found + [
        Follower(_described(name, job, config, settings, done)) for name in SERVICES if name in config.report_to
    ]


def _described(tracker: str, job: TrainJob, config: TrainConfig, settings: Mapping[str, Any], done: int) -> TrackedRun:
    output = config.output.resolve()
    configuration = job.configuration or {"train": config.model_dump(mode="json"), "student": str(job.student)}
    about = {"alignkd": _version(), "output": str(output), "steps": config.num_steps}
    return TrackedRun(
        tracker=tracker,
        output=output,
        project=config.report_project,
        name=output.name,
        group=output.parent.name,
        tags=_tags(job, config),
        configuration=without_secrets({**about, **configuration}),
        settings=hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode()).hexdigest()[:16],
        done=done,
        steps=config.num_steps,
    )


def _tags(job: TrainJob, config: TrainConfig) -> tuple[str, ...]:
    """What runs are told apart by at a glance."""
    preference = None if config.preference == "none" else config.preference
    lora = "lora" if job.trained.choice == "lora" else None
    return tuple(filter(None, (config.preset, preference, lora)))


def _version() -> str:
    try:
        return version("alignkd")
    except PackageNotFoundError:
        return "unknown"
