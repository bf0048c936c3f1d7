"""Runs one phase of a configuration, with a progress bar on a terminal and the resolved configuration kept."""

import json
from dataclasses import replace
from pathlib import Path

from tqdm import tqdm

from pipeline.config import RunConfig
from student_train.job import TrainResult
from student_train.trainer import train
from teacher_dump.dump import dump
from teacher_dump.job import DumpResult


def run_dump(config: RunConfig) -> DumpResult:
    """Phase 1."""
    # disable=None: quiet when stderr is not a terminal
    with tqdm(desc="dump", unit="sample", disable=None) as bar:

        def progress(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        return dump(replace(config.dump_job(), progress=progress))


def run_train(config: RunConfig) -> TrainResult:
    """Phase 2; the resolved configuration is saved as `OUTPUT/config.json`."""
    assert config.train is not None
    save_config(config, config.train.output / "config.json")
    return train(config.train_job())


def save_config(config: RunConfig, path: Path) -> None:
    """The configuration with every default filled in, as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(config.model_dump(mode="json"), indent=2) + "\n")
