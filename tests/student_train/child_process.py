"""Runs `train(job)` in a process of its own, which a test may strike at a chosen moment.

Arguments: the job as JSON, and null or [module, function, n, signal]: the process gets the signal when the function is
called for the n-th time. Exits with 128 + signal when the run was interrupted, 1 with one line on a user's error.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch

from alignkd.student_train import trainer
from alignkd.student_train.checkpoints import checkpoint, export
from alignkd.student_train.config import TrainConfig
from alignkd.student_train.job import TrainJob
from alignkd.student_train.stores import TrainStore
from alignkd.student_train.trained.settings import TrainedConfig
from alignkd.student_train.validation import domain_weights, validation

MODULES: dict[str, Any] = {
    "checkpoint": checkpoint,
    "domain_weights": domain_weights,
    "export": export,
    "trainer": trainer,
    "validation": validation,
}


def main(job_json: str, blow_json: str) -> None:
    torch.set_num_threads(1)
    blow = json.loads(blow_json)
    if blow is not None:
        strike(MODULES[blow[0]], *blow[1:])
    try:
        result = trainer.train(job_of(json.loads(job_json)))
    except ValueError as error:
        sys.exit(str(error))
    sys.exit(128 + result.interrupted_by if result.interrupted_by else 0)


def job_of(values: dict[str, Any]) -> TrainJob:
    store = values["store"]
    several = {"store": tuple(TrainStore(**entry) for entry in store)} if isinstance(store, list) else {}
    names = ("images", "vision_config", *(() if several else ("store",)))
    paths = {name: Path(values[name]) for name in names if values[name] is not None}
    sections = {"train": TrainConfig(**values["train"]), "trained": TrainedConfig(**values["trained"])}
    return TrainJob(**values | paths | several | sections)


def strike(module: Any, name: str, number: int, signal: int) -> None:
    original, calls = getattr(module, name), [0]

    def struck(*args: Any, **kwargs: Any) -> Any:
        calls[0] += 1
        if calls[0] == number:
            os.kill(os.getpid(), signal)
        return original(*args, **kwargs)

    setattr(module, name, struck)


if __name__ == "__main__":
    main(*sys.argv[1:])
