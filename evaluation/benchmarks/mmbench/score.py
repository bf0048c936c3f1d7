"""The score of MMBench, as OpenCompass' eval_mmbench.py gives it without asking GPT."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

from alignkd.evaluation.answers import Answer
from alignkd.evaluation.benchmarks.mmbench.cells import NO_TEXT
from alignkd.evaluation.benchmarks.mmbench.reading import read_letter
from alignkd.evaluation.benchmarks.mmbench.table import LETTERS, ROTATION, Row, read_rows
from alignkd.evaluation.completeness import AS_ORIGINAL, incomplete_notes
from alignkd.evaluation.folder import question_file
from alignkd.evaluation.listed import some
from alignkd.evaluation.score import Item, Score, mean
from alignkd.vlm.errors import InputError

# rows and questions of the two releases
PUBLISHED_SIZES = ((4_329, 1_164), (4_377, 1_176))


def score_answers(folder: Path, answers: Sequence[Answer], *, as_original: bool = False) -> Score:
    """Share of the questions of which all rotations are right, in per cent.

    An answer without a readable letter is wrong; the official tool asks GPT where no other rotation is wrong, and
    `groups_that_would_ask_gpt` counts these questions. Answers to other rows are ignored. With `as_original`, the
    last of several answers counts, and no answer is wrong.

    Raises:
        InputError: the table is unusable; without `as_original`: missing or doubled answers, missing rotations.
    """
    rows = read_rows(folder, with_images=False)
    groups, notes = _groups(rows, question_file(folder, "mmbench"), as_original)
    ids = [answer.question_id for answer in answers]
    notes += incomplete_notes([row.index for row in rows], ids, as_original=as_original)
    by_id = {answer.question_id: answer for answer in answers}
    items = {row.index: _item(row, by_id.get(row.index)) for row in rows}
    right = {group: all(items[row.index].score for row in own) for group, own in groups.items()}
    accuracy = mean([float(one) for one in right.values()]) * 100
    return Score(
        benchmark="mmbench",
        headline_name="accuracy",
        headline_value=accuracy,
        unit="%",
        totals={
            "accuracy": accuracy,
            "groups": len(groups),
            "groups_right": sum(right.values()),
            "groups_that_would_ask_gpt": sum(_would_ask(own, items) for own in groups.values()),
            "by_l2_category": _by("l2-category", groups, right),
            "by_category": _by("category", groups, right),
            "without_circular_first_rotation": mean([items[group].score for group in groups]) * 100,
            "rows_right": mean([item.score for item in items.values()]) * 100,
        },
        questions=len(rows),
        answers=sum(row.index in by_id for row in rows),
        unreadable=tuple(item.id for item in items.values() if item.read_as is None),
        notes=(*_size_note(len(rows), len(groups)), *notes),
        items=tuple(items.values()),
    )


def _groups(rows: Sequence[Row], path: Path, as_original: bool) -> tuple[dict[int, list[Row]], list[str]]:
    """The rotations of each question, and a line if some are missing; the unrotated row is first."""
    groups: dict[int, list[Row]] = defaultdict(list)
    for row in rows:
        groups[row.group].append(row)
    incomplete = [group for group, own in groups.items() if not _is_complete(own)]
    notes = []
    if incomplete:
        notes = [f"questions with missing rotations: {len(incomplete)} of {len(groups)} ({some(incomplete)})"]
        if not as_original:
            raise InputError(
                f"{path}: {notes[0]}, without which the score is too high; copy the table again, or give "
                f"{AS_ORIGINAL} for the original's number"
            )
    unrotated = {row.index for row in rows if row.index < ROTATION}
    return {group: own for group, own in groups.items() if group in unrotated}, notes


def _is_complete(rows: Sequence[Row]) -> bool:
    """Whether the rotations are numbered from 0 without a gap, one for each option that moves between them.

    Some questions keep their last option in its place, such as "all of the above".
    """
    columns = [{row.cell(letter) for row in rows} for letter in LETTERS]
    options = [column for column in columns if column != {""}]
    moving = sum(len(column) > 1 for column in options)
    numbers = sorted(row.index // ROTATION for row in rows)
    return numbers == list(range(len(rows))) and len(rows) >= (moving or min(2, len(options)))


def _item(row: Row, answer: Answer | None) -> Item:
    text = answer.text if answer else ""
    letter = read_letter(text, row.options())
    return Item(id=row.index, text=text, read_as=letter, gold=row.answer, score=float(letter == row.answer))


def _would_ask(rows: Sequence[Row], items: Mapping[int, Item]) -> bool:
    readings = [items[row.index] for row in rows]
    is_wrong = any(item.read_as is not None and not item.score for item in readings)
    return not is_wrong and any(item.read_as is None for item in readings)


def _by(column: str, groups: Mapping[int, Sequence[Row]], right: Mapping[int, bool]) -> dict[str, float]:
    """Accuracy over the questions of each category, which the unrotated row has."""
    found: dict[str, list[float]] = defaultdict(list)
    for group, rows in groups.items():
        unrotated = next(row for row in rows if row.index == group)
        found[unrotated.cell(column) or NO_TEXT].append(float(right[group]))
    return {name: mean(values) * 100 for name, values in sorted(found.items())}


def _size_note(num_rows: int, num_groups: int) -> list[str]:
    if (num_rows, num_groups) in PUBLISHED_SIZES:
        return []
    published = " or ".join(f"{rows} rows of {groups}" for rows, groups in PUBLISHED_SIZES)
    return [f"{num_rows} rows of {num_groups} questions instead of the published {published}"]
