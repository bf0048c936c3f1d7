"""Benchmark scores as a table: one row per model, as in the paper's Table 1."""

from collections.abc import Iterator

from alignkd.evaluation.table import digits, shown_value
from alignkd.pipeline.console.printing import aligned
from alignkd.pipeline.report.scores.comparison import Comparison, Row
from alignkd.pipeline.report.scores.evaluation import Column

HEADING = "## Benchmark scores"
AVERAGE = "average"
NOTE = (
    "Per cent of each benchmark, points of 2000 for MME. The average is "
    "(MME / 20 + GQA + TextVQA + POPE + MMBench + ScienceQA) / 6."
)


def plain_scores(comparison: Comparison) -> Iterator[str]:
    """Table and notes for a terminal."""
    yield from aligned(score_cells(comparison))
    yield from remarks(comparison)


def markdown_scores(comparison: Comparison, *, picture: str | None) -> str:
    """The section of the page: table, notes and picture."""
    head, *rows = (f"| {' | '.join(row)} |" for row in score_cells(comparison))
    ruler = f"|:--|{'--:|' * (len(comparison.columns) + comparison.has_average)}"
    shown = [] if picture is None else [f"![Benchmark scores]({picture})", ""]
    listed = [f"* {line}" for line in remarks(comparison)]
    return "\n".join([HEADING, "", head, ruler, *rows, "", NOTE, "", *listed, *([""] if listed else []), *shown])


def score_cells(comparison: Comparison) -> list[list[str]]:
    """The cells; the first row has the names of the benchmarks, the first column those of the models."""
    heads = ["model", *(column.title for column in comparison.columns)]
    marks = _marks(comparison)
    rows = [
        [row.evaluation.name, *(_cell(row, column, marks) for column in comparison.columns)] for row in comparison.rows
    ]
    if comparison.has_average:
        heads.append(AVERAGE)
        for cells, row in zip(rows, comparison.rows, strict=True):
            cells.append(_average(row, marks))
    return [heads, *rows]


def _cell(row: Row, column: Column, marks: dict[str, str]) -> str:
    number = row.evaluation.numbers.get(column)
    text = shown_value(column.unit_of, None if number is None else number.value)
    if (reason := row.reasons.get(column)) is not None:
        return f"{text} {marks[reason]}"
    difference = row.differences.get(column)
    return text if difference is None else f"{text} ({difference:+.{digits(column.unit_of)}f})"


def _average(row: Row, marks: dict[str, str]) -> str:
    if row.evaluation.average is None:
        return "-"
    text = f"{row.evaluation.average:.2f}"
    if row.average_difference is not None:
        return f"{text} ({row.average_difference:+.2f})"
    return " ".join([text, *dict.fromkeys(marks[reason] for reason in row.reasons.values())])


def _marks(comparison: Comparison) -> dict[str, str]:
    """A mark for each reason for which numbers may not be compared."""
    reasons = dict.fromkeys(reason for row in comparison.rows for reason in row.reasons.values())
    return {reason: f"[{number}]" for number, reason in enumerate(reasons, start=1)}


def remarks(comparison: Comparison) -> Iterator[str]:
    """Lines about the numbers."""
    name = comparison.reference.name
    if comparison.has_baseline:
        yield f"in parentheses: difference to {name}"
    for reason, mark in _marks(comparison).items():
        yield f"{mark} not comparable with {name}: {reason}"
    yield from comparison.notes
