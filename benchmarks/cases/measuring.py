"""Measures cases in turn over several rounds; a ratio compares two figures of the same round."""

import gc
import os
import platform
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch


@dataclass(frozen=True)
class Case:
    """A case to measure: `run` returns bytes and seconds; `against` is the name of the case to compare with."""

    name: str
    run: Callable[[], tuple[int, float]]
    against: str | None = None
    goal: float | None = None


@dataclass(frozen=True)
class Measured:
    """Medians over the rounds; `spread` is the smallest and the largest ratio."""

    case: Case
    megabytes_per_second: float
    ratio: float | None
    spread: tuple[float, float] | None


def timed(work: Callable[[], int], clock: Callable[[], float]) -> Callable[[], tuple[int, float]]:
    """Make a case's `run` from work that returns the number of processed bytes."""

    def run() -> tuple[int, float]:
        gc.collect()
        started = clock()
        size = work()
        return size, clock() - started

    return run


def measure(cases: Sequence[Case], rounds: int) -> list[Measured]:
    """Run all cases one after the other, `rounds` times."""
    speeds: dict[str, list[float]] = {case.name: [] for case in cases}
    for _ in range(rounds):
        for case in cases:
            size, seconds = case.run()
            speeds[case.name].append(size / seconds / 1e6)
    return [_summary(case, speeds) for case in cases]


def _summary(case: Case, speeds: dict[str, list[float]]) -> Measured:
    found = speeds[case.name]
    if case.against is None:
        return Measured(case, statistics.median(found), None, None)
    ratios = [mine / other for mine, other in zip(found, speeds[case.against], strict=True)]
    return Measured(case, statistics.median(found), statistics.median(ratios), (min(ratios), max(ratios)))


def table(title: str, measured: Sequence[Measured], *, markdown: bool) -> str:
    """The figures as text, or as a markdown table."""
    header = ("case", "MB/s", "ratio", "lowest..highest", "goal", "compared with")
    rows = [header, *(_row(found) for found in measured)]
    if markdown:
        lines = ["| " + " | ".join(row) + " |" for row in rows]
        return "\n".join([f"### {title}", "", lines[0], "|:--|--:|--:|--:|--:|:--|", *lines[1:], ""])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join([title, *("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows), ""])


def _row(found: Measured) -> tuple[str, ...]:
    case = found.case
    ratio = "" if found.ratio is None else _short(found.ratio)
    spread = "" if found.spread is None else f"{_short(found.spread[0])}..{_short(found.spread[1])}"
    goal = "" if case.goal is None else f"{case.goal:.2f}"
    return case.name, f"{found.megabytes_per_second:.0f}", ratio, spread, goal, case.against or ""


def _short(ratio: float) -> str:
    return f"{ratio:.2f}" if ratio >= 0.1 else f"{ratio:.3f}"


def machine() -> str:
    """Description of the machine, with its load average of the last minute."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines() if Path("/proc/cpuinfo").exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    name = f"{len(models)} x {models[0]}" if models else platform.machine()
    versions = f"Python {platform.python_version()}, torch {torch.__version__}"
    return f"{name}, {platform.system()}, {versions}, load {os.getloadavg()[0]:.1f}"
