"""`alignkd train --status OUTPUT`: progress of a training run, from its files and its lock; loads no torch."""

import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from alignkd.pipeline.runs.student.train_files import (
    CheckpointOnDisk,
    best_validation,
    is_number,
    read_checkpoints,
    read_metrics,
    read_scores,
)
from alignkd.storage.errors import StoreError
from alignkd.student_train.errors import TrainError
from alignkd.student_train.output import METRICS, read_configuration, read_finished
from alignkd.student_train.run.output.lock import LOCK, holder_of, no_training_starts

# steps in a mean of losses and in the median of seconds per step
WINDOW = 50


@dataclass(frozen=True, kw_only=True)
class TrainStatus:
    """The state of a training run that runs, has ended or has crashed.

    Attributes:
        output: its folder.
        state: `finished`, `running` if a process holds the lock of the folder, `interrupted` if none does, `unknown` if
            the lock cannot be tested.
        host, pid, since: the process that trains there; None if none runs.
        step: optimiser steps done, including those after the last checkpoint.
        steps: planned optimiser steps; None if they are not known yet.
        samples_seen: samples consumed.
        seconds_per_step: median of the last steps; None if no step has been recorded.
        seconds_left: remaining time at this rate; None if the run does not run.
        seconds_since_step: since the metrics file was written.
        loss: mean over the last steps, at most WINDOW and at most half of the recorded ones.
        loss_before: mean over as many steps before them.
        loss_steps: number of steps in each of both means.
        skipped_steps: steps whose loss or gradient was not finite.
        checkpoint_step: step of the newest checkpoint; None if there is none.
        checkpoint_seconds_old: since it was written.
        checkpoints: steps of all checkpoints.
        best_validation_step, best_validation: step and figure of the best validation; None without one.
        scores: score of the exported student by benchmark, and their `average`; None if it was not evaluated.
        damaged_lines: lines of the metrics file that cannot be read.
        remarks: what else is unusual about the files.
    """

    output: str
    state: Literal["finished", "running", "interrupted", "unknown"]
    host: str | None
    pid: int | None
    since: str | None
    step: int
    steps: int | None
    samples_seen: int
    seconds_per_step: float | None
    seconds_left: float | None
    seconds_since_step: float | None
    loss: float | None
    loss_before: float | None
    loss_steps: int
    skipped_steps: int
    checkpoint_step: int | None
    checkpoint_seconds_old: float | None
    checkpoints: tuple[int, ...]
    best_validation_step: int | None
    best_validation: float | None
    scores: Mapping[str, float] | None
    damaged_lines: int
    remarks: tuple[str, ...]


def train_status(output: Path) -> TrainStatus:
    """Read the progress of the run in a folder.

    Raises:
        TrainError: the folder holds no training run, or cannot be read.
    """
    configuration = read_configuration(output)
    if configuration is None and not any((output / name).exists() for name in (LOCK, METRICS)):
        found = "holds no training run" if output.is_dir() else "is not a folder"
        raise TrainError(f"{output}: {found}; give the output folder of `alignkd train`")
    finished, remarks = _finished(output)
    with no_training_starts(output) as lock:  # before the other files: what a running process adds is not lost
        pass
    state: Literal["finished", "running", "interrupted", "unknown"] = "interrupted"
    if finished is not None:
        state = "finished"
    elif lock != "free":
        state = "running" if lock == "held" else "unknown"
    holder = (holder_of(output) if state == "running" else None) or {}
    lines, damaged = read_metrics(output)
    checkpoints = read_checkpoints(output)
    best = best_validation(output)
    step, samples_seen = _progress(finished, lines, checkpoints)
    steps = _planned_steps(output, finished, checkpoints, configuration, lines)
    seconds = _median([line["seconds"] for line in lines[-WINDOW:] if is_number(line.get("seconds"))])
    window = min(WINDOW, max(1, len(lines) // 2))
    unread = [f"checkpoint of step {one.step} is damaged" for one in checkpoints if not one.document]
    return TrainStatus(
        output=str(output),
        state=state,
        host=holder.get("host"),
        pid=holder.get("pid"),
        since=holder.get("since"),
        step=step,
        steps=steps,
        samples_seen=samples_seen,
        seconds_per_step=seconds,
        seconds_left=_seconds_left(state, step, steps, seconds),
        seconds_since_step=_age(output / METRICS) if lines else None,
        loss=_mean_loss(lines[-window:]),
        loss_before=_mean_loss(lines[-2 * window : -window]),
        loss_steps=window if lines else 0,
        skipped_steps=_skipped(finished, lines, checkpoints),
        checkpoint_step=checkpoints[-1].step if checkpoints else None,
        checkpoint_seconds_old=checkpoints[-1].seconds_old if checkpoints else None,
        checkpoints=tuple(one.step for one in checkpoints),
        best_validation_step=None if best is None else int(best["best_step"]),
        best_validation=None if best is None else float(best["best"]),
        scores=read_scores(output),
        damaged_lines=damaged,
        remarks=(*remarks, *unread),
    )


def _finished(output: Path) -> tuple[Mapping[str, Any] | None, list[str]]:
    """`finished.json`; None and a remark if it is damaged."""
    try:
        return read_finished(output), []
    except (TrainError, StoreError) as error:
        return None, [str(error)]


def _progress(
    finished: Mapping[str, Any] | None, lines: Sequence[Mapping[str, Any]], checkpoints: Sequence[CheckpointOnDisk]
) -> tuple[int, int]:
    """Steps done and samples seen: those of the end, else the larger of the last line and the last checkpoint."""
    if finished is not None:
        return int(finished["step"]), int(finished["samples_seen"])
    documents = [*lines[-1:], *(one.document for one in checkpoints if one.document)]
    found = [(int(document["step"]), int(document.get("samples_seen") or 0)) for document in documents]
    return max(found, default=(0, 0))


def _planned_steps(
    output: Path,
    finished: Mapping[str, Any] | None,
    checkpoints: Sequence[CheckpointOnDisk],
    configuration: Mapping[str, Any] | None,
    lines: Sequence[Mapping[str, Any]],
) -> int | None:
    """Length of the run: of its end, else of a checkpoint, else of its configuration."""
    for document in (finished, *(one.document for one in reversed(checkpoints))):
        if document and isinstance(steps := document.get("settings", {}).get("steps"), int):
            return steps
    train = (configuration or {}).get("train") or {}
    if isinstance(train.get("steps"), int):
        return int(train["steps"])
    return _steps_of_epochs(output, train.get("epochs"), lines)


def _steps_of_epochs(output: Path, epochs: object, lines: Sequence[Mapping[str, Any]]) -> int | None:
    """Passes over the stores in steps; the global batch is what the first steps have consumed."""
    last = lines[-1] if lines else {}
    if not isinstance(epochs, int | float) or not last.get("samples_seen"):
        return None
    # these load torch: only before the first checkpoint
    from alignkd.pipeline.runs.student.train_export import job_of
    from alignkd.student_train.config import samples_of_epochs
    from alignkd.student_train.run.mixture import mixture_of

    try:
        per_pass = mixture_of(job_of(output)).per_pass
    except (ValueError, OSError):  # StoreError and TrainError are ValueErrors
        return None
    return -(-samples_of_epochs(epochs, per_pass) * int(last["step"]) // int(last["samples_seen"]))


def _skipped(
    finished: Mapping[str, Any] | None, lines: Sequence[Mapping[str, Any]], checkpoints: Sequence[CheckpointOnDisk]
) -> int:
    """Skipped steps of the end or the newest checkpoint, and those of later lines."""
    known = [finished] if finished is not None else [one.document for one in reversed(checkpoints) if one.document]
    counted, after = (int(known[0]["skipped_steps"]), int(known[0]["step"])) if known else (0, 0)
    return counted + sum(bool(line.get("skipped")) for line in lines if line["step"] > after)


def _seconds_left(state: str, step: int, steps: int | None, seconds: float | None) -> float | None:
    if state != "running" or steps is None or seconds is None:
        return None
    return max(0, steps - step) * seconds


def _mean_loss(lines: Sequence[Mapping[str, Any]]) -> float | None:
    values = [line["loss"] for line in lines if is_number(line["loss"])]
    return statistics.fmean(values) if values else None


def _median(values: Sequence[float]) -> float | None:
    return statistics.median(values) if values else None


def _age(path: Path) -> float | None:
    try:
        return max(0.0, time.time() - path.stat().st_mtime)
    except OSError:
        return None
