"""Benchmark scores for the page: the table of `alignkd report`, with intervals as text and as a picture."""

from collections.abc import Sequence

from alignkd.evaluation.table import shown_value, unit
from alignkd.pipeline.report.html.markup import Markup, element, joined, table
from alignkd.pipeline.report.html.svg import Axis, colour_class, shown_number, ticks
from alignkd.pipeline.report.scores.comparison import Comparison, Row
from alignkd.pipeline.report.scores.evaluation import Column
from alignkd.pipeline.report.scores.interval import Interval, interval_of
from alignkd.pipeline.report.scores.table import NOTE, remarks, score_cells

_WIDTH, _LEFT, _RIGHT, _ROW, _BOTTOM = 420, 130, 16, 22, 24
_LONGEST_NAME = 20
INTERVALS = (
    "In brackets: interval of 95 % (Wilson) for the questions as a sample of all such questions; it does not contain "
    "how scores differ between seeds. Benchmarks whose number is not a mean over single questions have none."
)


def scores_section(comparison: Comparison) -> Markup:
    """Table, notes and one picture per benchmark."""
    head, *lines = score_cells(comparison)
    rows: list[list[object]] = [list(head)]
    for row, cells in zip(comparison.rows, lines, strict=True):
        shown: list[object] = [cells[0]]
        for column, cell in zip(comparison.columns, cells[1:], strict=False):
            shown.append(_with_interval(cell, _interval(row, column), column))
        rows.append(shown + cells[1 + len(comparison.columns) :])
    notes = [element("p", line, class_="note") for line in (NOTE, INTERVALS, *remarks(comparison))]
    pictures = [_picture(comparison.rows, column) for column in comparison.columns]
    return joined(table(rows), *notes, element("div", *pictures, class_="charts"))


def _interval(row: Row, column: Column) -> Interval | None:
    number = row.evaluation.numbers.get(column)
    return None if number is None else interval_of(column, number)


def _with_interval(cell: str, found: Interval | None, column: Column) -> str:
    if found is None:
        return cell
    return f"{cell} [{shown_value(column.unit_of, found.low)}, {shown_value(column.unit_of, found.high)}]"


def _picture(rows: Sequence[Row], column: Column) -> Markup:
    """A dot for each model that has the number, with its interval."""
    found = [
        (number, row, value)
        for number, row in enumerate(rows)
        if (one := row.evaluation.numbers.get(column)) is not None and (value := one.value) is not None
    ]
    if not found:
        return Markup("")
    ends = [end for _, row, value in found for end in (value, *(_interval(row, column) or ()))]
    margin = 0.08 * (max(ends) - min(ends)) or 1.0
    height = _ROW * len(found) + _BOTTOM + 6
    axis = Axis(low=min(ends) - margin, high=max(ends) + margin, start=_LEFT, end=_WIDTH - _RIGHT)
    parts: list[Markup] = []
    for value in ticks(axis.low, axis.high):
        x = round(axis(value), 1)
        parts.append(element("line", class_="grid", x1=x, x2=x, y1=4, y2=height - _BOTTOM))
        parts.append(element("text", shown_number(value), class_="x", x=x, y=height - _BOTTOM + 15))
    for line, (number, row, value) in enumerate(found):
        parts += _dot(row, column, value, colour_class(number), axis, _ROW * line + _ROW / 2 + 4)
    title = element("figcaption", column.title, element("span", unit(column.unit_of), class_="note"))
    drawn = element("svg", *parts, viewBox=f"0 0 {_WIDTH} {height}", role="img", aria_label=column.title)
    return element("figure", title, drawn)


def _dot(row: Row, column: Column, value: float, colour: str, axis: Axis, y: float) -> list[Markup]:
    name = row.evaluation.name
    shown = name if len(name) <= _LONGEST_NAME else f"...{name[-_LONGEST_NAME:]}"
    text = f"{name}: {_with_interval(shown_value(column.unit_of, value), _interval(row, column), column)}"
    parts = [element("text", shown, class_="y name", x=_LEFT - 8, y=y + 4)]
    if (found := _interval(row, column)) is not None:
        low, high = (round(axis(end), 1) for end in found)
        parts.append(element("line", class_=f"span {colour}", x1=low, x2=high, y1=y, y2=y))
    title = element("title", text)
    return [*parts, element("circle", title, class_=f"dot {colour}", cx=round(axis(value), 1), cy=y, r=4)]
