"""Training runs as `alignkd report` sees them: what their output folders say, nothing recomputed."""

import itertools
import json
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from alignkd.storage import StoreError
from alignkd.student_train.output import FINISHED, METRICS, read_finished
from alignkd.vlm.errors import InputError, unreadable

LOSSES = ("loss", "supervised", "logit", "attention", "vision_all", "vision_top")
KINDS = "samples_"


@dataclass(frozen=True, kw_only=True)
class Run:
    """One training run.

    Attributes:
        name: shortest end of its path that tells it from the other runs.
        path: its output folder.
        state: `finished`, or `unfinished` while it goes on or after it was stopped.
        steps: optimiser steps done.
        samples_seen: samples consumed.
        samples_by_kind: the same by kind.
        skipped: steps whose loss or gradient was not finite.
        final: by loss term, the mean over the last steps that have it.
        seconds_per_step, tokens_per_second, wait_share: medians over the steps; None where the run did not note them.
        peak_memory_mib: most memory on the (first) device.
        curves: by loss term, (step, running mean) of each step that has it.
    """

    name: str
    path: Path
    state: str
    steps: int
    samples_seen: int
    samples_by_kind: dict[str, int]
    skipped: int
    final: dict[str, float]
    seconds_per_step: float | None
    tokens_per_second: float | None
    wait_share: float | None
    peak_memory_mib: float | None
    curves: dict[str, list[tuple[int, float]]]


def load_runs(paths: Sequence[Path], *, smooth: int) -> list[Run]:
    """Every run, named apart.

    Args:
        paths: output folders of training, or their metrics files.
        smooth: steps that a running mean covers.

    Raises:
        InputError: a folder without a usable metrics file, or the same run twice.
    """
    folders = [path.parent if path.name == METRICS else path for path in paths]
    if twice := {folder for folder in folders if folders.count(folder) > 1}:
        raise InputError(f"{min(twice)}: given twice; compare different runs")
    names = _short_names(folders)
    return [_load(folder, name, smooth) for folder, name in zip(folders, names, strict=True)]


def report_json(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """One object per run, curves included."""
    return [asdict(run) for run in runs]


def running_mean(values: Sequence[float], window: int) -> list[float]:
    """The mean of each value and up to `window - 1` before it."""
    return [statistics.fmean(values[max(0, end - window) : end]) for end in range(1, len(values) + 1)]


def _load(folder: Path, name: str, smooth: int) -> Run:
    lines = _metrics(folder)
    points = {term: [(line["step"], line[term]) for line in lines if line.get(term) is not None] for term in LOSSES}
    curves = {
        term: list(zip([step for step, _ in of_term], running_mean([v for _, v in of_term], smooth), strict=True))
        for term, of_term in points.items()
        if of_term
    }
    kinds = {key.removeprefix(KINDS) for line in lines for key in line if key.startswith(KINDS)} - {"seen"}
    return Run(
        name=name,
        path=folder,
        state="finished" if _is_finished(folder) else "unfinished",
        steps=lines[-1]["step"],
        samples_seen=lines[-1]["samples_seen"],
        samples_by_kind={kind: sum(line.get(KINDS + kind, 0) for line in lines) for kind in sorted(kinds)},
        skipped=sum(bool(line.get("skipped")) for line in lines),
        final={term: curve[-1][1] for term, curve in curves.items()},
        seconds_per_step=_median(lines, "seconds"),
        tokens_per_second=_median(lines, "tokens_per_second"),
        wait_share=_median(lines, "wait_share"),
        peak_memory_mib=max((line["peak_memory_mib"] for line in lines if "peak_memory_mib" in line), default=None),
        curves=curves,
    )


def _metrics(folder: Path) -> list[dict[str, Any]]:
    file = folder / METRICS
    try:
        text = file.read_text(encoding="utf-8")
    except (FileNotFoundError, NotADirectoryError) as error:
        raise InputError(f"{file}: cannot be read ({error.strerror}); give a training run's output folder") from error
    except OSError as error:
        raise unreadable(file, error) from error
    # a run that is being written, or was killed, may end in half a line
    whole = [(number, line) for number, line in enumerate(text.splitlines(keepends=True), 1) if line.endswith("}\n")]
    try:
        lines: list[dict[str, Any]] = [json.loads(line) for _, line in whole]
        if not lines:
            raise InputError(f"{file}: holds no step yet; wait for the run's first one")
        assert all({"step", "samples_seen", "loss"} <= line.keys() for line in lines)
    except (json.JSONDecodeError, AssertionError, AttributeError) as error:
        raise InputError(f"{file}: is no metrics file of a training run; give its output folder") from error
    _check_order(file, [(number, line["step"]) for (number, _), line in zip(whole, lines, strict=True)])
    return lines


def _check_order(file: Path, steps: Sequence[tuple[int, Any]]) -> None:
    """Refuse what two runs at once wrote; (line number, step) of each line."""
    for (_, before), (number, step) in itertools.pairwise(steps):
        if not isinstance(step, int) or step <= before:
            raise InputError(
                f"{file}: line {number} has step {step} after step {before}; several runs wrote it at once, and their "
                "figures cannot be separated: train again into another output"
            )


def _is_finished(folder: Path) -> bool:
    try:
        return read_finished(folder) is not None
    except StoreError as error:
        raise InputError(f"{folder / FINISHED}: is damaged ({error}); run the training again") from error


def _median(lines: Sequence[dict[str, Any]], name: str) -> float | None:
    values = [line[name] for line in lines if line.get(name) is not None]
    return statistics.median(values) if values else None


def _short_names(folders: Sequence[Path]) -> list[str]:
    """The fewest last parts of each path that make all names different."""
    parts = [folder.resolve().parts for folder in folders]
    for count in range(1, max(map(len, parts)) + 1):
        names = ["/".join(part[-count:]) for part in parts]
        if len(set(names)) == len(names):
            return names
    return [str(folder) for folder in folders]
