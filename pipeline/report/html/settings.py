"""Settings in which runs differ, and runs that differ in their seed only."""

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from alignkd.pipeline.report.load import Run, best_value, losses_of, validated_losses_of
from alignkd.student_train.output import read_configuration

MISSING = "-"  # also for null: earlier versions lack the keys of later ones
# the seed, and what follows from it where runs lie beside each other
_OF_THE_SEED = ("train.seed", "train.output", "train.adapters", "student.checkpoint", "eval.out")
_LONGEST_VALUE = 200


def configurations(runs: Sequence[Run]) -> list[dict[str, str]]:
    """For each run, `section.key` -> value as JSON; {} for a run without a configuration."""
    return [dict(_flat(read_configuration(run.path) or {})) for run in runs]


def differing(found: Sequence[Mapping[str, str]]) -> dict[str, list[str]]:
    """Key -> its value in each run, of the keys whose values are not all the same; the output is not among them."""
    keys = dict.fromkeys(key for one in found for key in one)
    listed = {key: [one.get(key, MISSING) for one in found] for key in keys if key != "train.output"}
    return {key: values for key, values in listed.items() if len(set(values)) > 1}


@dataclass(frozen=True, kw_only=True)
class Seeds:
    """Runs that differ in their seed only.

    Attributes:
        runs: at least two.
        losses: label -> mean and standard deviation over the runs that have it.
    """

    runs: tuple[Run, ...]
    losses: dict[str, tuple[float, float]]


def seeds_of(runs: Sequence[Run], found: Sequence[Mapping[str, str]]) -> list[Seeds]:
    """The groups of runs with several seeds; a run without a configuration is in none."""
    groups: dict[str, list[Run]] = {}
    for run, one in zip(runs, found, strict=True):
        if one:
            rest = {key: value for key, value in one.items() if key not in _OF_THE_SEED}
            groups.setdefault(json.dumps(rest, sort_keys=True), []).append(run)
    return [Seeds(runs=tuple(group), losses=_losses(group)) for group in groups.values() if len(group) > 1]


def _losses(runs: Sequence[Run]) -> dict[str, tuple[float, float]]:
    values = {name: [run.final.get(name) for run in runs] for name in losses_of(runs)}
    values |= {f"validation {name}": [best_value(run, name) for run in runs] for name in validated_losses_of(runs)}
    known = {name: [value for value in several if value is not None] for name, several in values.items()}
    return {
        name: (statistics.fmean(several), statistics.stdev(several))
        for name, several in known.items()
        if len(several) > 1 and all(map(math.isfinite, several))
    }


def _flat(value: Any, where: str = "") -> list[tuple[str, str]]:
    if isinstance(value, list) and any(isinstance(inner, dict) for inner in value):
        value = dict(enumerate(value))
    if value is None:
        return []
    if isinstance(value, dict) and value:
        return [
            pair for name, inner in value.items() for pair in _flat(inner, f"{where}.{name}" if where else str(name))
        ]
    shown = value if isinstance(value, str) else json.dumps(value)
    return [(where, shown[:_LONGEST_VALUE])] if where else []
