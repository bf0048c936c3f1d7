"""Benchmark scores as a picture: one axis per benchmark, each with its own range, as in the paper's Figure 1."""

import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import Any, Literal

from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.offsetbox import AnnotationBbox, DrawingArea, HPacker, TextArea, VPacker
from matplotlib.projections.polar import PolarAxes

from alignkd.evaluation.table import shown_value, unit
from alignkd.pipeline.console.picture_file import REPORT, save_picture
from alignkd.pipeline.report.scores.comparison import Comparison
from alignkd.pipeline.report.scores.evaluation import Column, Evaluation

# fewer axes span no area: these are drawn as bars
LEAST_AXES = 3
TITLE = "Benchmark scores"
# Okabe and Ito's colours for colour-blind people, with markers for pictures without colours; their numbers have no
# common divisor, so that 56 models differ
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<")
# one for each round through the colours
DASHES = ("-", "--", ":", "-.")
HATCHES = ("", "//", "..", "xx")
# radius of the smallest of an axis' numbers; that of the largest is 1
_INNER = 0.35
# the least range of an axis, as a share of its largest number: noise must not fill the picture
_LEAST_RANGE = 0.02
_MARKER_POINTS = 9.0
_INCHES, _INCHES_OF_BARS = (8.4, 7.6), (8.4, 4.8)
# what a line of numbers takes above and below the polygons
_INCHES_PER_MODEL = 0.3
# upper bounds for text of the legend, whose size is `small`
_INCHES_PER_CHARACTER, _INCHES_PER_SAMPLE = 0.08, 0.65
_LONGEST_NAME = 80
_REMARK_CHARACTERS = 100
# as wide as a digit
_FIGURE_SPACE = "\u2007"


@dataclass(frozen=True, kw_only=True)
class Style:
    """How a model is drawn."""

    colour: str
    marker: str
    dash: str

    def of_line(self) -> dict[str, Any]:
        """Arguments of matplotlib's lines."""
        return {"color": self.colour, "marker": self.marker, "linestyle": self.dash}


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
    low, high, least = min(values), max(values), _least_range(values)
    return (low, high) if high - low >= least else ((low + high - least) / 2, (low + high + least) / 2)


def _least_range(values: Sequence[float]) -> float:
    return _LEAST_RANGE * max(abs(max(values)), 1.0)


def _is_widened(values: Sequence[float]) -> bool:
    """Whether the range of an axis is larger than that of its numbers."""
    return max(values) - min(values) < _least_range(values)


def radius(value: float, span: tuple[float, float]) -> float:
    """Distance of a number from the centre."""
    return _INNER + (1.0 - _INNER) * (value - span[0]) / (span[1] - span[0])


def draw_scores(comparison: Comparison, path: Path) -> None:
    """Write the picture: a polygon per model, or bars for fewer than three benchmarks."""
    save_picture(scores_figure(comparison), path, REPORT, dpi=150)


def scores_figure(comparison: Comparison) -> Figure:
    """The figure of the models that may be compared; a line in the legend names the others."""
    columns, models = drawn_columns(comparison), drawn_evaluations(comparison)
    has_axes = len(columns) >= LEAST_AXES
    width, height = _INCHES if has_axes else _INCHES_OF_BARS
    figure = Figure(figsize=(width, height + _INCHES_PER_MODEL * max(0, len(models) - 4)), layout="constrained")
    FigureCanvasAgg(figure)
    if has_axes:
        axes = figure.add_subplot(projection="polar")
        assert isinstance(axes, PolarAxes)
        _draw_polygons(axes, models, columns)
        handles, names = axes.get_legend_handles_labels()
    else:
        places = figure.subplots(1, len(columns), squeeze=False)[0]
        for axes, column in zip(places, columns, strict=True):
            _draw_bars(axes, models, column)
        handles, names = places[0].get_legend_handles_labels()
    shown = list(map(shown_name, names))
    legend = figure.legend(
        handles,
        shown,
        loc="outside lower center",
        ncols=legend_columns(shown, width),
        fontsize="small",
        title=_remarks(comparison, has_axes=has_axes),
        title_fontsize="small",
        frameon=False,
    )
    legend.get_title().set_multialignment("center")
    figure.suptitle(TITLE, fontsize="large", weight="bold")
    return figure


def _remarks(comparison: Comparison, *, has_axes: bool) -> str:
    """What the lengths mean, and what is not drawn."""
    models, lines = drawn_evaluations(comparison), list[str]()
    if has_axes:
        lines.append("Each axis has its own range: its smallest number on the inner ring, its largest on the rim.")
        columns = drawn_columns(comparison)
        if widened := [column.title for column in columns if _is_widened(_values(models, column))]:
            lines.append(f"A range is at least {_LEAST_RANGE:.0%} of the largest number, here of {', '.join(widened)}.")
    if left := [row.evaluation.name for row in comparison.rows if row.evaluation not in models]:
        lines.append(f"Not drawn, because not comparable or without numbers: {', '.join(left)}.")
    return "\n".join(part for line in lines for part in textwrap.wrap(line, _REMARK_CHARACTERS))


def shown_name(name: str) -> str:
    """The end of a long name: that is where names of runs differ."""
    return name if len(name) <= _LONGEST_NAME else f"...{name[-_LONGEST_NAME:]}"


def legend_columns(names: Sequence[str], inches: float) -> int:
    """As many columns of a small legend as a figure of this width has room for, at most four."""
    column = _INCHES_PER_SAMPLE + _INCHES_PER_CHARACTER * max(map(len, names))
    return max(1, min(len(names), 4, int(inches / column)))


def _styles(models: Sequence[Evaluation]) -> list[tuple[Evaluation, Style]]:
    rounds = (dash for dash in cycle(DASHES) for _ in COLOURS)
    return [
        (one, Style(colour=colour, marker=marker, dash=dash))
        for one, colour, marker, dash in zip(models, cycle(COLOURS), cycle(MARKERS), rounds, strict=False)
    ]


def _values(models: Sequence[Evaluation], column: Column) -> list[float]:
    return [value for one in models if (value := _value(one, column)) is not None]


def _value(one: Evaluation, column: Column) -> float | None:
    number = one.numbers.get(column)
    return None if number is None else number.value


def _draw_polygons(axes: PolarAxes, models: Sequence[Evaluation], columns: Sequence[Column]) -> None:
    angles = [2 * math.pi * number / len(columns) for number in range(len(columns))]
    spans = [axis_range(_values(models, column)) for column in columns]
    axes.set_theta_zero_location("N")
    axes.set_theta_direction(-1)
    axes.set_ylim(0, 1.0)
    axes.spines["polar"].set_alpha(0.4)
    axes.set_xticks(angles, [""] * len(angles))
    axes.set_yticks([_INNER, (1 + _INNER) / 2, 1.0], [""] * 3)
    axes.grid(alpha=0.4)
    for one, style in _styles(models):
        # a number that is missing leaves a gap
        values = [_value(one, column) for column in columns]
        radii = [math.nan if value is None else radius(value, span) for value, span in zip(values, spans, strict=True)]
        around, closed = [*angles, angles[0]], [*radii, radii[0]]
        axes.plot(around, closed, label=one.name, linewidth=1.6, clip_on=False, zorder=3, **style.of_line())
        if None not in values:
            axes.fill(angles, radii, color=style.colour, alpha=0.06)
    for angle, column in zip(angles, columns, strict=True):
        axes.add_artist(_numbers(angle, models, column))


def _numbers(angle: float, models: Sequence[Evaluation], column: Column) -> AnnotationBbox:
    """The benchmark's name and unit outside the rim, and below it the number of each model beside its marker."""
    across, along = math.sin(angle), math.cos(angle)
    side: Literal["left", "right", "center"] = "left" if across > 0.3 else "right" if across < -0.3 else "center"
    numbers = [_shown(one, column) for one in models]
    width = max(map(len, numbers))
    lines: list[Artist] = [_text(_with_unit(column), weight="bold")]
    lines += [
        HPacker(pad=0, sep=3, align="center", children=[_sample(style), _text(text.rjust(width, _FIGURE_SPACE))])
        for text, (_, style) in zip(numbers, _styles(models), strict=True)
    ]
    return AnnotationBbox(
        VPacker(pad=0, sep=2, align=side, children=lines),
        (angle, 1.04),
        xybox=(8 * across, 0),
        boxcoords="offset points",
        # the block grows away from the rim at the top and at the bottom, and is centred at the sides
        box_alignment=({"left": 0.0, "center": 0.5, "right": 1.0}[side], 0.5 - 0.5 * along),
        frameon=False,
        pad=0,
        annotation_clip=False,
    )


def _text(text: str, *, weight: str = "normal") -> TextArea:
    return TextArea(text, textprops={"fontsize": "small", "weight": weight})


def _sample(style: Style) -> DrawingArea:
    """The marker of a model."""
    area, middle = DrawingArea(_MARKER_POINTS, _MARKER_POINTS), _MARKER_POINTS / 2
    area.add_artist(Line2D([middle], [middle], markersize=0.6 * _MARKER_POINTS, **style.of_line()))
    return area


def _shown(one: Evaluation, column: Column) -> str:
    return shown_value(column.benchmark, _value(one, column))


def _with_unit(column: Column) -> str:
    return f"{column.title}, {unit(column.benchmark)}"


def _draw_bars(axes: Axes, models: Sequence[Evaluation], column: Column) -> None:
    for number, (one, style) in enumerate(_styles(models)):
        bar = axes.bar([number], [_value(one, column) or 0.0], color=style.colour, label=one.name)
        axes.bar_label(bar, [_shown(one, column)], fontsize="small")
        # bars of one colour differ by their pattern
        bar.patches[0].set(hatch=HATCHES[number // len(COLOURS) % len(HATCHES)], edgecolor="white")
    axes.set_title(column.title)
    axes.set_xticks([])
    axes.set_xlim(-0.75, len(models) - 0.25)
    axes.set_ylabel(unit(column.benchmark))
