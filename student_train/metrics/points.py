"""The named values that every tracker gets from a line of `metrics.jsonl` or `validation.jsonl`; loads no torch."""

from collections.abc import Mapping
from typing import Any

from alignkd.student_train.output import BY_SOURCE, loss_names, validation_loss_names


def step_points(line: Mapping[str, Any]) -> dict[str, float]:
    """Name -> value of every figure of a step that has one.

    Losses are under `loss/`, sources under `source/NAME/`, the rest under `run/`.
    """
    losses = loss_names(line)
    named = [
        (f"loss/{_shown(name)}" if name in losses else f"run/{name}", value)
        for name, value in line.items()
        if name not in ("step", BY_SOURCE)
    ]
    named += [
        (f"source/{source}/{name}", value)
        for source, figures in line.get(BY_SOURCE, {}).items()
        for name, value in figures.items()
    ]
    return {name: float(value) for name, value in named if value is not None}


def validation_points(line: Mapping[str, Any]) -> dict[str, float]:
    """Name -> value of every loss of a validation that has one, under `validation/`."""
    return {
        f"validation/{_shown(name)}": float(line[name])
        for name in validation_loss_names(line)
        if line[name] is not None
    }


def _shown(loss: str) -> str:
    return "total" if loss == "loss" else loss
