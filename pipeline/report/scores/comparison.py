"""Evaluations against one of them: differences where the numbers may be compared, the reasons where they may not."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from alignkd.evaluation.benchmark import BENCHMARKS
from alignkd.pipeline.report.scores.evaluation import Column, Evaluation
from alignkd.pipeline.report.scores.load import Evaluations


@dataclass(frozen=True, kw_only=True)
class Row:
    """One evaluation in the table.

    Attributes:
        differences: by column, number minus that of the baseline; only where both were made in the same way.
        average_difference: the same of the average.
        reasons: by column, how the number was made otherwise than that of the reference; no such number is compared.
    """

    evaluation: Evaluation
    differences: dict[Column, float] = field(default_factory=dict)
    average_difference: float | None = None
    reasons: dict[Column, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """All evaluations.

    Attributes:
        columns: those that any evaluation has, in the order of the benchmarks.
        reference: the baseline, or the first evaluation.
        has_baseline: whether the reference is a baseline.
        notes: what is to be known about the numbers.
    """

    rows: tuple[Row, ...]
    columns: tuple[Column, ...]
    reference: Evaluation
    has_baseline: bool
    notes: tuple[str, ...]

    @property
    def has_average(self) -> bool:
        """Whether any evaluation has the average of all benchmarks."""
        return any(row.evaluation.average is not None for row in self.rows)


def compare(evaluations: Evaluations) -> Comparison | None:
    """Compare with the baseline; None if there is no evaluation."""
    listed = evaluations.listed
    if not listed:
        return None
    reference = evaluations.baseline or listed[0]
    columns = {column for one in listed for column in one.numbers}
    order = list(BENCHMARKS)
    return Comparison(
        rows=tuple(_row(one, reference, has_baseline=evaluations.baseline is not None) for one in listed),
        columns=tuple(sorted(columns, key=lambda one: (order.index(one.benchmark), one.first or 0))),
        reference=reference,
        has_baseline=evaluations.baseline is not None,
        notes=tuple(_notes(evaluations)),
    )


def _row(one: Evaluation, reference: Evaluation, *, has_baseline: bool) -> Row:
    if one is reference:
        return Row(evaluation=one)
    settings = _other_settings(one, reference)
    reasons: dict[Column, str] = {}
    differences: dict[Column, float] = {}
    for column, number in one.numbers.items():
        base = reference.numbers.get(column)
        found = list(settings)
        if base is not None and number.questions != base.questions:
            found.append(f"{number.questions} questions, not {base.questions}")
        elif base is not None and None not in (number.sha256, base.sha256) and number.sha256 != base.sha256:
            found.append("the questions differ, or their images lie elsewhere (sha256 in questions.json)")
        if found:
            reasons[column] = "; ".join(found)
        elif has_baseline and base is not None and number.value is not None and base.value is not None:
            differences[column] = number.value - base.value
    average = None
    if has_baseline and one.average is not None and reference.average is not None:
        average = None if reasons else one.average - reference.average
    return Row(evaluation=one, differences=differences, average_difference=average, reasons=reasons)


def _other_settings(one: Evaluation, reference: Evaluation) -> list[str]:
    """The settings that differ; with other prompts, the template is another one in any case."""
    ours, theirs = one.settings, reference.settings
    keys = [key for key in {**ours, **theirs} if ours.get(key) != theirs.get(key)]
    if "prompts" in keys:
        keys = [key for key in keys if key != "template"]
    return [f"{key} {ours.get(key)}, not {theirs.get(key)}" for key in keys]


def _notes(evaluations: Evaluations) -> list[str]:
    listed = evaluations.listed
    found = [
        f"{_of(listed, [one for one in listed if note in one.notes])}{note}"
        for note in dict.fromkeys(note for one in listed for note in one.notes)
    ]
    found += [
        f"no score: {one.name}: {column.title}: {number.why_not}"
        for one in listed
        for column, number in one.numbers.items()
        if number.why_not is not None
    ]
    if len(evaluations.baselines) > 1 and evaluations.baseline is None:
        found.append(
            f"the runs have several baselines ({', '.join(evaluations.baselines)}), so that no difference is shown; "
            "choose one with --baseline"
        )
    return found


def _of(listed: Sequence[Evaluation], those: Sequence[Evaluation]) -> str:
    return "" if len(those) == len(listed) else f"{', '.join(one.name for one in those)}: "


def row_json(row: Row, comparison: Comparison) -> dict[str, Any]:
    """An evaluation, its numbers and what they were compared with, as plain values."""
    one = row.evaluation
    return {
        "path": str(one.path),
        "checkpoint": one.checkpoint,
        "model": one.model,
        **one.settings,
        "scores": [
            {
                "benchmark": column.benchmark,
                "first": column.first,
                "value": number.value,
                "why_not": number.why_not,
                "questions": number.questions,
                "unreadable": number.unreadable,
                "to_baseline": row.differences.get(column),
                "not_comparable": row.reasons.get(column),
            }
            for column, number in one.numbers.items()
        ],
        "average": one.average,
        "average_to_baseline": row.average_difference,
        "reference": comparison.reference.name,
        "reference_is_baseline": comparison.has_baseline,
        "notes": list(one.notes),
    }
