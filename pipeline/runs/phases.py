"""Runs phase 2 of a configuration; phase 1 is in `dump_phase`."""

import os

from alignkd.pipeline.config.run_config import RunConfig
from alignkd.student_train.job import TrainResult
from alignkd.student_train.trainer import train


def run_train(config: RunConfig) -> TrainResult:
    """Phase 2; the resolved configuration is kept as `OUTPUT/run.json`."""
    return train(config.train_job())


def is_first_process() -> bool:
    """Whether this process of a launcher (torchrun, deepspeed) is the one that speaks; alone it always is."""
    return os.environ.get("RANK", "0") == "0"
