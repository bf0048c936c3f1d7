"""Benchmark scores as a picture: one axis per benchmark, each with its own range, as in the paper's Figure 1."""

import math
from collections.abc import Sequence
from itertools import cycle
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.projections.polar import PolarAxes

from alignkd.evaluation.table import shown_value
from alignkd.pipeline.console.picture_file import REPORT, save_picture
from alignkd.pipeline.report.scores.comparison import Comparison
from alignkd.pipeline.report.scores.evaluation import Column, Evaluation

# fewer axes span no area: these are drawn as bars
LEAST_AXES = 3
# Okabe and Ito's colours for colour-blind people, with markers for pictures without colours
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
# radius of the smallest of an axis' numbers; that of the largest is 1
_INNER = 0.35
# the least range of an axis, as a share of its largest number: noise must not fill the picture
_LEAST_RANGE = 0.02
_LINE_POINTS = 11.0


def drawn_columns(comparison: Comparison) -> list[Column]:
    """The numbers of whole benchmarks that any drawn model has."""
    drawn = drawn_evaluations(comparison)
    return [column for column in _whole(comparison) if any(_value(one, column) is not None for one in drawn)]


def drawn_evaluations(comparison: Comparison) -> list[Evaluation]:
    """The models whose numbers may all be compared with those of the reference, and that have one to draw."""
    columns = _whole(comparison)
    return [
        row.evaluation
        for row in comparison.rows
        if not row.reasons and any(_value(row.evaluation, column) is not None for column in columns)
    ]


def _whole(comparison: Comparison) -> list[Column]:
    return [column for column in comparison.columns if column.first is None]


def can_be_drawn(comparison: Comparison) -> bool:
    """Whether there is a number of a whole benchmark."""
    return bool(drawn_columns(comparison))


def axis_range(values: Sequence[float]) -> tuple[float, float]:
    """The numbers at radius `_INNER` and at radius 1 of an axis: its smallest and its largest one."""
    low, high = min(values), max(values)
    least = _LEAST_RANGE * max(abs(high), 1.0)
    return (low, high) if high - low >= least else ((low + high - least) / 2, (low + high + least) / 2)


def radius(value: float, span: tuple[float, float]) -> float:
    """Distance of a number from the centre."""
    return _INNER + (1.0 - _INNER) * (value - span[0]) / (span[1] - span[0])


def draw_scores(comparison: Comparison, path: Path) -> None:
    """Write the picture: a polygon per model, or bars for fewer than three benchmarks."""
    save_picture(scores_figure(comparison), path, REPORT, dpi=110)


def scores_figure(comparison: Comparison) -> Figure:
    """The figure of the models that may be compared; a line below names the others."""
    columns, models = drawn_columns(comparison), drawn_evaluations(comparison)
    figure = Figure(figsize=(8.4, 7.4), layout="constrained")
    FigureCanvasAgg(figure)
    if len(columns) >= LEAST_AXES:
        axes = figure.add_subplot(projection="polar")
        assert isinstance(axes, PolarAxes)
        _draw_polygons(axes, models, columns)
        handles = axes.get_legend_handles_labels()
    else:
        places = figure.subplots(1, len(columns), squeeze=False)[0]
        for axes, column in zip(places, columns, strict=True):
            _draw_bars(axes, models, column)
        handles = places[0].get_legend_handles_labels()
    figure.legend(*handles, loc="outside lower center", ncols=min(len(models), 4))
    figure.suptitle("\n".join(_heading(comparison, has_axes=len(columns) >= LEAST_AXES)), fontsize="small")
    return figure


def _heading(comparison: Comparison, *, has_axes: bool) -> list[str]:
    models, lines = drawn_evaluations(comparison), []
    if has_axes:
        lines.append("each axis has its own range: from the smallest number, on the inner ring, to the largest")
    if left := [row.evaluation.name for row in comparison.rows if row.evaluation not in models]:
        lines.append(f"not drawn, because not comparable or without numbers: {', '.join(left)}")
    return lines


def _styles(models: Sequence[Evaluation]) -> list[tuple[Evaluation, str, str]]:
    return [(one, colour, marker) for one, colour, marker in zip(models, cycle(COLOURS), cycle(MARKERS), strict=False)]


def _value(one: Evaluation, column: Column) -> float | None:
    number = one.numbers.get(column)
    return None if number is None else number.value


def _draw_polygons(axes: PolarAxes, models: Sequence[Evaluation], columns: Sequence[Column]) -> None:
    angles = [2 * math.pi * number / len(columns) for number in range(len(columns))]
    spans = [axis_range([value for one in models if (value := _value(one, column)) is not None]) for column in columns]
    axes.set_theta_zero_location("N")
    axes.set_theta_direction(-1)
    axes.set_ylim(0, 1.0)
    axes.spines["polar"].set_alpha(0.4)
    axes.set_xticks(angles, [""] * len(angles))
    axes.set_yticks([_INNER, (1 + _INNER) / 2, 1.0], [""] * 3)
    axes.grid(alpha=0.4)
    for one, colour, marker in _styles(models):
        # a number that is missing leaves a gap
        values = [_value(one, column) for column in columns]
        radii = [math.nan if value is None else radius(value, span) for value, span in zip(values, spans, strict=True)]
        around = [*angles, angles[0]]
        axes.plot(around, [*radii, radii[0]], color=colour, marker=marker, linewidth=1.6, label=one.name, clip_on=False)
        if None not in values:
            axes.fill(angles, radii, color=colour, alpha=0.06)
    for angle, column in zip(angles, columns, strict=True):
        _write_numbers(axes, angle, models, column)


def _write_numbers(axes: PolarAxes, angle: float, models: Sequence[Evaluation], column: Column) -> None:
    """The benchmark's name outside the rim, and below it the number of each model in its colour."""
    across, along = math.sin(angle), math.cos(angle)
    place = "left" if across > 0.3 else "right" if across < -0.3 else "center"
    lines = [(column.title, "black", "bold")]
    lines += [
        (shown_value(column.benchmark, _value(one, column)), colour, "normal") for one, colour, _ in _styles(models)
    ]
    height = _LINE_POINTS * len(lines)
    # the block grows away from the rim at the top, and is centred at the sides
    top = height * (0.5 + 0.5 * along)
    for number, (text, colour, weight) in enumerate(lines):
        axes.annotate(
            text,
            (angle, 1.04),
            xytext=(8 * across, top - _LINE_POINTS * (number + 0.5)),
            textcoords="offset points",
            color=colour,
            weight=weight,
            fontsize="small",
            ha=place,
            va="center",
            annotation_clip=False,
        )


def _draw_bars(axes: Axes, models: Sequence[Evaluation], column: Column) -> None:
    values = {one.name: _value(one, column) for one in models}
    for number, (one, colour, _) in enumerate(_styles(models)):
        value = values[one.name]
        bar = axes.bar([number], [0.0 if value is None else value], color=colour, label=one.name)
        axes.bar_label(bar, [shown_value(column.benchmark, value)], fontsize="small")
    axes.set_title(column.title)
    axes.set_xticks([])
    axes.set_xlim(-0.75, len(models) - 0.25)
    axes.set_ylabel("points" if column.benchmark == "mme" else "%")
