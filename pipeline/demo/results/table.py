"""The tables of a report: on the terminal, on its page, and in the documents."""

from collections.abc import Mapping, Sequence
from statistics import mean, stdev
from typing import Any

from alignkd.pipeline.demo.recipes import SUPERVISED
from alignkd.pipeline.demo.world.questions import SCENE_QUESTION_TYPES, TEXT_QUESTION_TYPES

GAP_HEADING = "of gap"
QUESTION_TYPES = (*SCENE_QUESTION_TYPES, *TEXT_QUESTION_TYPES)
Rows = list[list[str]]


def table(report: Mapping[str, Any]) -> Rows:
    """Heading and one row per model: accuracy in %, its minimum, share of the gap, accuracy of each question type.

    The minimum over seeds is left out if there is one seed.
    """
    types = sorted(report["teacher"]["by_type"], key=QUESTION_TYPES.index)
    several = len(report["students"][SUPERVISED]["accuracy"]) > 1
    rows = [["", "accuracy", *(["min"] if several else []), GAP_HEADING, *types]]
    for label, model in (("teacher", report["teacher"]), ("most frequent answer", report["majority"])):
        cells = [f"{100 * model['accuracy']:.1f}", *([""] if several else []), ""]
        rows.append([label, *cells, *_by_type(model["by_type"], types)])
    for student in report["students"].values():
        least = [f"{100 * min(student['accuracy']):.1f}"] if several else []
        cells = [_percent(student["accuracy"]), *least, _share(student["gap"])]
        rows.append([student["label"], *cells, *_by_type(student["by_type"], types)])
    return rows


def differences(report: Mapping[str, Any]) -> Rows:
    """Heading and one row per student with a partner: accuracy less that of the partner; empty without such rows."""
    students = report["students"]
    rows = [
        [student["label"], students[student["partner"]]["label"], _points(student["difference"])]
        for student in students.values()
        if student["difference"] is not None
    ]
    return [["", "compared with", "difference in points"], *rows] if rows else []


def plain_table(rows: Rows) -> str:
    """A table with aligned columns for the terminal."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    # Names are aligned left, figures right.
    aligned = [[f"{cell:{'>' if place else '<'}{widths[place]}}" for place, cell in enumerate(row)] for row in rows]
    lines = ["  ".join(cells).rstrip() for cells in aligned]
    return "\n".join([lines[0], "-" * max(map(len, lines)), *lines[1:]])


def markdown_table(rows: Rows) -> str:
    """A table in markdown, with the empty line after it."""
    heading, *body = rows
    cells = [heading, [":--", *["--:"] * (len(heading) - 1)], *body]
    return "\n".join(["| " + " | ".join(row) + " |" for row in cells] + [""])


def _percent(values: Sequence[float]) -> str:
    spread = f" ± {100 * stdev(values):.1f}" if len(values) > 1 else ""
    return f"{100 * mean(values):.1f}{spread}"


def _share(gap: Mapping[str, float] | None) -> str:
    """`67 % (55..78)`."""
    if gap is None:
        return ""
    ends = "" if gap["low"] is None else f" ({100 * gap['low']:.0f}..{100 * gap['high']:.0f})"
    return f"{100 * gap['estimate']:.0f} %{ends}"


def _points(difference: Mapping[str, float]) -> str:
    """`+14.2 (9.1..19.0)`."""
    ends = "" if difference["low"] is None else f" ({100 * difference['low']:.1f}..{100 * difference['high']:.1f})"
    return f"{100 * difference['estimate']:+.1f}{ends}"


def _by_type(by_type: Mapping[str, Any], types: Sequence[str]) -> list[str]:
    """Means over seeds."""
    return [f"{100 * mean(value if isinstance(value, list) else [value]):.0f}" for value in map(by_type.get, types)]
