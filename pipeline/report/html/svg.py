"""A chart as SVG: complete without the script, which only adds the values under the pointer."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from alignkd.pipeline.report.html.charts import Chart, Line
from alignkd.pipeline.report.html.markup import Markup, element

WIDTH, HEIGHT = 420, 250
LEFT, RIGHT, TOP, BOTTOM = 58, 12, 10, 34
NUM_COLOURS = 7
FEW_POINTS = 10
_TICKS = 5


@dataclass(frozen=True, kw_only=True)
class Axis:
    """A range of values, and its place in pixels.

    Attributes:
        low, high: ends of the range, `low` < `high`; logarithms where `logarithmic`.
        start, end: pixels of `low` and `high`.
    """

    low: float
    high: float
    start: float
    end: float
    logarithmic: bool = False

    def __call__(self, value: float) -> float:
        """The pixel of a value."""
        value = math.log10(value) if self.logarithmic else value
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)


def drawn(chart: Chart, number: int) -> Markup:
    """The SVG of a chart.

    Args:
        number: the chart's place in the data of the script.
    """
    across, along = axes_of(chart)
    parts = [*_grid(across, along), *(part for line in chart.lines for part in _line(line, across, along))]
    parts.append(element("line", class_="cursor", x1=LEFT, x2=LEFT, y1=TOP, y2=HEIGHT - BOTTOM, visibility="hidden"))
    return element(
        "svg",
        *parts,
        viewBox=f"0 0 {WIDTH} {HEIGHT}",
        role="img",
        aria_label=f"{chart.title} by optimiser step",
        tabindex=0,
        data_chart=number,
        data_low=across.low,
        data_high=across.high,
    )


def axes_of(chart: Chart) -> tuple[Axis, Axis]:
    """The axis of steps and that of values."""
    steps = [step for line in chart.lines for step, _ in line.points]
    values = [value for line in chart.lines for _, value in line.points]
    scale: Callable[[float], float] = math.log10 if chart.logarithmic else float
    low, high = _spread(scale(min(values)), scale(max(values)))
    first, last = min(steps), max(steps)
    return (
        Axis(low=first, high=last if last > first else first + 1, start=LEFT, end=WIDTH - RIGHT),
        Axis(low=low, high=high, start=HEIGHT - BOTTOM, end=TOP, logarithmic=chart.logarithmic),
    )


def ticks(low: float, high: float, most: int = _TICKS) -> list[float]:
    """Round numbers within a range, at most about `most` of them."""
    raw = (high - low) / most
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= raw * 0.999)
    return [count * step for count in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def shown_number(value: float) -> str:
    """A number for an axis."""
    if value == 0:
        return "0"
    return f"{value:,.0f}" if 10_000 <= abs(value) < 1e6 else f"{value:.4g}"


def colour_class(run: int) -> str:
    """Class of a run's colour; a second round of the colours has another class as well."""
    return f"c{run % NUM_COLOURS}" + (" again" if run // NUM_COLOURS % 2 else "")


def _spread(low: float, high: float) -> tuple[float, float]:
    margin = 0.04 * (high - low) or 0.05 * abs(high) or 1.0
    return low - margin, high + margin


def _grid(across: Axis, along: Axis) -> list[Markup]:
    parts = []
    for value in _ticks_of(along):
        y = round(along(value), 1)
        parts.append(element("line", class_="grid", x1=LEFT, x2=WIDTH - RIGHT, y1=y, y2=y))
        parts.append(element("text", shown_number(value), class_="y", x=LEFT - 6, y=y + 4))
    for value in ticks(across.low, across.high):
        if value == int(value):
            x = round(across(value), 1)
            parts.append(element("line", class_="grid", x1=x, x2=x, y1=TOP, y2=HEIGHT - BOTTOM))
            parts.append(element("text", shown_number(value), class_="x", x=x, y=HEIGHT - BOTTOM + 15))
    parts.append(element("text", "optimiser step", class_="x", x=(LEFT + WIDTH - RIGHT) / 2, y=HEIGHT - 4))
    return parts


def _ticks_of(axis: Axis) -> Sequence[float]:
    if not axis.logarithmic:
        return ticks(axis.low, axis.high)
    powers = range(math.floor(axis.low), math.ceil(axis.high) + 1)
    factors = (1, 2, 5) if axis.high - axis.low < 2.5 else (1,)
    values = [factor * 10.0**power for power in powers for factor in factors]
    return [value for value in values if axis.low <= math.log10(value) <= axis.high]


def _line(line: Line, across: Axis, along: Axis) -> list[Markup]:
    places = [(round(across(step), 1), round(along(value), 1)) for step, value in line.points]
    kind = f"{colour_class(line.run)}{' validation' if line.validation else ''}"
    parts = [
        element("polyline", class_=f"line {kind}", points=" ".join(f"{x},{y}" for x, y in places), data_run=line.run)
    ]
    if len(places) <= FEW_POINTS:
        parts += [element("circle", class_=f"dot {kind}", cx=x, cy=y, r=2.5, data_run=line.run) for x, y in places]
    if line.star is not None:
        x, y = round(across(line.star[0]), 1), round(along(line.star[1]), 1)
        parts.append(element("path", class_=f"dot {kind}", d=_star(x, y), data_run=line.run))
    return parts


def _star(x: float, y: float) -> str:
    corners = [(6.5 if corner % 2 == 0 else 2.8, math.pi * (corner / 5 - 0.5)) for corner in range(10)]
    return "M" + "L".join(f"{x + r * math.cos(a):.1f},{y + r * math.sin(a):.1f}" for r, a in corners) + "Z"
