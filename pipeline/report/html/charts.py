"""What the page draws: lines of runs by step, with as few points as the picture can show."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from alignkd.pipeline.report.load import FIGURES, Run, best_value, losses_of, moved_figures_of

Points = list[tuple[int, float]]
# of a line; a chart is about 400 pixels wide
MOST_POINTS = 500
# A range of losses above this ratio is drawn on a logarithmic axis: the first steps would hide the rest.
LOGARITHMIC_RATIO = 20.0
# larger numbers are none that a run computed
_LARGEST = 1e300
TITLES = {
    "loss": "loss (weighted sum)",
    "learning_rate": "learning rate",
    "grad_norm": "gradient norm",
    "seconds": "seconds per step",
    "tokens_per_second": "tokens per second",
}


@dataclass(frozen=True, kw_only=True)
class Line:
    """One line of a chart.

    Attributes:
        run: number of the run.
        validation: whether it is of validations.
        points: (step, value), some of those of the run.
        star: the best validation.
    """

    run: int
    validation: bool
    points: Points
    star: tuple[int, float] | None = None


@dataclass(frozen=True, kw_only=True)
class Chart:
    """One chart.

    Attributes:
        name: of the figure.
        title: shown.
        note: what the lines are, beside the title; empty for values as they are.
        lines: at least one.
        logarithmic: whether the vertical axis is.
    """

    name: str
    title: str
    note: str
    lines: tuple[Line, ...]
    logarithmic: bool


def charts_of(runs: Sequence[Run]) -> list[Chart]:
    """A chart for every loss, for every figure that an objective moves, for learning rate, gradient and speed."""
    found = []
    for name in losses_of(runs):
        lines = [line for number, run in enumerate(runs) for line in _lines_of_loss(number, run, name)]
        if lines:
            note = "running mean; validation dashed" if _validated(lines) else "running mean"
            found.append(_chart(name, lines, note))
    for name in (*moved_figures_of(runs), *FIGURES):
        lines = [
            Line(run=number, validation=False, points=thinned(points))
            for number, run in enumerate(runs)
            if (points := _drawable(run.moved.get(name) or run.figures.get(name)))
        ]
        if lines:
            found.append(_chart(name, lines, ""))
    return found


def thinned(points: Points, most: int = MOST_POINTS) -> Points:
    """Some of the points, the first, the last, and the smallest and largest of each stretch among them."""
    if len(points) <= most:
        return list(points)
    stretches = (most - 2) // 2
    kept = {0, len(points) - 1}
    for number in range(stretches):
        start, end = len(points) * number // stretches, len(points) * (number + 1) // stretches
        kept |= {
            min(range(start, end), key=lambda at: points[at][1]),
            max(range(start, end), key=lambda at: points[at][1]),
        }
    return [points[at] for at in sorted(kept)]


def _lines_of_loss(number: int, run: Run, name: str) -> Iterator[Line]:
    if points := _drawable(run.curves.get(name)):
        yield Line(run=number, validation=False, points=thinned(points))
    if points := _drawable(run.validation.get(name)):
        best = best_value(run, name)
        star = None if run.best_step is None or best is None else (run.best_step, best)
        yield Line(run=number, validation=True, points=thinned(points), star=star)


def _drawable(points: Points | None) -> Points:
    """The points with a finite number: a file of a stranger may hold anything."""
    return [point for point in points or () if isinstance(point[1], int | float) and abs(point[1]) < _LARGEST]


def _validated(lines: Sequence[Line]) -> bool:
    return any(line.validation for line in lines)


def _chart(name: str, lines: Sequence[Line], note: str) -> Chart:
    values = [value for line in lines for _, value in line.points]
    low, high = min(values), max(values)
    is_logarithmic = name not in FIGURES and low > 0 and high / low > LOGARITHMIC_RATIO and math.isfinite(high / low)
    return Chart(
        name=name,
        title=TITLES.get(name, name.replace("_", " ")),
        note=f"{note}; logarithmic" if is_logarithmic and note else note,
        lines=tuple(lines),
        logarithmic=is_logarithmic,
    )
