"""The files of a training run as another process reads them, also while the run writes them; loads no torch."""

import json
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alignkd.pipeline.config.eval_place import RESULTS, evaluations_of
from alignkd.storage.errors import StoreError
from alignkd.storage.schema.sealed_json import unseal
from alignkd.student_train.errors import TrainError
from alignkd.student_train.output import METRICS, checkpoints_folder

VALIDATION = "validation.jsonl"
# the sum of larger numbers may be none
_LARGEST = 1e300
STATE = "state.json"


@dataclass(frozen=True, kw_only=True)
class CheckpointOnDisk:
    """One checkpoint; its tensors were not read.

    Attributes:
        step: optimiser steps done.
        seconds_old: since it was written.
        document: its `state.json`, {} if that cannot be read.
    """

    step: int
    seconds_old: float
    document: Mapping[str, Any]


def read_checkpoints(output: Path) -> list[CheckpointOnDisk]:
    """Every checkpoint that is there, by step."""
    found = []
    for path in sorted(checkpoints_folder(output).glob("step-*")):
        name = path.name.removeprefix("step-")
        try:
            modified = (path / STATE).stat().st_mtime
            document = unseal(path / STATE)
        except (OSError, StoreError):
            if not path.is_dir() or not re.fullmatch(r"[0-9]{1,18}", name):
                continue  # the run has just removed it
            modified, document = time.time(), {}
        found.append(CheckpointOnDisk(step=int(name), seconds_old=time.time() - modified, document=document))
    return found


def read_lines(path: Path, needed: tuple[str, ...]) -> tuple[list[dict[str, Any]], int]:
    """The objects of a JSON-lines file that have all `needed` keys, and the number of damaged lines.

    A last line without its end is being written, and is not counted. A missing file has no lines.

    Raises:
        TrainError: the file cannot be read.
    """
    try:
        text = path.read_bytes().decode("utf-8", errors="replace")
    except (FileNotFoundError, NotADirectoryError):
        return [], 0
    except OSError as error:
        raise TrainError(f"{path}: cannot be read ({error.strerror}); check its permissions") from error
    whole = [line for line in text.splitlines(keepends=True) if line.endswith("\n")]
    found = [document for line in whole if (document := _object(line, needed)) is not None]
    return found, len(whole) - len(found)


def read_metrics(output: Path) -> tuple[list[dict[str, Any]], int]:
    """The lines of the metrics file by step, and the number of damaged lines.

    Raises:
        TrainError: the file cannot be read.
    """
    return read_lines(output / METRICS, ("step", "loss"))


def best_validation(output: Path) -> dict[str, Any] | None:
    """The last line of `validation.jsonl`, which has `best_step` and `best`; None without such a line.

    Raises:
        TrainError: the file cannot be read.
    """
    lines, _ = read_lines(output / VALIDATION, ("step", "best_step", "best"))
    return next((line for line in reversed(lines) if is_number(line["best"])), None)


def read_scores(output: Path) -> dict[str, float] | None:
    """Benchmark -> score of the run's student, and `average` where all have one; None if it was not evaluated."""
    folder = evaluations_of(output).get("student")
    if folder is None:
        return None
    try:
        found = json.loads((folder / RESULTS).read_bytes())
        scores = {**found["row"], "average": found["average"]}
    except (OSError, ValueError, TypeError, KeyError):
        return None
    return {name: value for name, value in scores.items() if is_number(value)}


def is_number(value: object) -> bool:
    """Whether a value of a JSON file is a finite number that a run can have computed."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < _LARGEST


def _object(line: str, needed: tuple[str, ...]) -> dict[str, Any] | None:
    try:
        document = json.loads(line)
    except (ValueError, RecursionError):
        return None
    usable = isinstance(document, dict) and document.keys() >= set(needed) and isinstance(document["step"], int)
    return document if usable else None
