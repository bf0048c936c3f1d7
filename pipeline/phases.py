"""Runs phase 2 of a configuration, whose resolved form is kept beside the output; phase 1 is in `dump_phase`."""

import json
import os
from pathlib import Path

from pipeline.config import RunConfig
from student_train.job import TrainResult
from student_train.output import CONFIG, METRICS
from student_train.trainer import train


def run_train(config: RunConfig) -> TrainResult:
    """Phase 2; the resolved configuration is saved as `OUTPUT/config.json`.

    By a fresh run at the start; by a resumed one at the end, when its settings have proved to be those of the run.
    """
    assert config.train is not None
    saved = config.train.output / CONFIG
    if is_first_process() and not (config.train.output / METRICS).exists():
        save_config(config, saved)
    result = train(config.train_job())
    if is_first_process():
        save_config(config, saved)
    return result


def is_first_process() -> bool:
    """Whether this process of a launcher (torchrun, deepspeed) is the one that speaks; alone it always is."""
    return os.environ.get("RANK", "0") == "0"


def save_config(config: RunConfig, path: Path) -> None:
    """The configuration with every default filled in, as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(config.model_dump(mode="json"), indent=2) + "\n", encoding="utf-8")
