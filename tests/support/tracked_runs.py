"""Runs as trackers are told of them."""

import json
from pathlib import Path
from typing import Any

from alignkd.student_train.metrics.trackers.service import TrackedRun


def tracked(output: Path, **about: Any) -> TrackedRun:
    """A run of four steps."""
    given: dict[str, Any] = {
        "tracker": "wandb", "output": output, "project": None, "name": "out", "group": "runs", "tags": (),
        "configuration": {}, "settings": "s", "done": 0, "steps": 4, **about,
    }  # fmt: skip
    return TrackedRun(**given)


def write_steps(output: Path, steps: list[int], validations: list[int]) -> None:
    """Append steps and validations to the files of a run."""
    losses = [{"step": step, "loss": 1.0 / step} for step in steps]
    found = [{"step": step, "loss": 1.0, "best_step": None, "best": None} for step in validations]
    for name, lines in (("metrics.jsonl", losses), ("validation.jsonl", found)):
        with (output / name).open("a") as file:
            file.write("".join(json.dumps(line) + "\n" for line in lines))
