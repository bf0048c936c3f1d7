"""The score of one answers file: headline, sub-scores, counts and how each answer was read."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from alignkd.evaluation.listed import some

# more than the longest line of an items file
_MAX_LINE_BYTES = 1 << 20


@dataclass(frozen=True, kw_only=True)
class Item:
    """How one answer was read.

    Attributes:
        id: `question_id`.
        text: the answer.
        read_as: what the scoring rules made of it; None if no rule could read it.
        gold: the expected reading; a list where several people answered.
        score: points between 0 and 1.
    """

    id: str | int
    text: str
    read_as: str | None
    gold: str | tuple[str, ...]
    score: float

    def as_json(self) -> dict[str, object]:
        """Values for one line of JSON."""
        gold = list(self.gold) if isinstance(self.gold, tuple) else self.gold
        return {
            "question_id": self.id,
            "text": self.text,
            "read_as": self.read_as,
            "gold": gold,
            "score": self.score,
        }


@dataclass(frozen=True, kw_only=True)
class Score:
    """The score of the answers to one benchmark.

    Attributes:
        benchmark: name, such as `gqa`.
        headline_name: name of the number that is reported, such as `accuracy`.
        headline_value: that number.
        unit: `%`, `points` or `fraction`.
        totals: all numbers that the original scorer gives, values of JSON.
        questions: number of questions that the score is over.
        answers: number of answers that were scored.
        unreadable: ids of the answers that no rule could read; they count as wrong.
        notes: one line for everything that makes the number another one than that of the whole, correct benchmark.
        items: how each answer was read, in the order of the scores.
    """

    benchmark: str
    headline_name: str
    headline_value: float
    unit: str
    totals: dict[str, object]
    questions: int
    answers: int
    unreadable: tuple[str | int, ...] = ()
    notes: tuple[str, ...] = ()
    items: tuple[Item, ...] = ()

    def as_json(self) -> dict[str, object]:
        """Values for JSON, without the items."""
        return {
            "benchmark": self.benchmark,
            "headline": {"name": self.headline_name, "value": self.headline_value},
            "unit": self.unit,
            "totals": self.totals,
            "counts": {
                "questions": self.questions,
                "answers": self.answers,
                "unreadable": len(self.unreadable),
            },
            "unreadable": list(self.unreadable),
            "notes": list(self.notes),
        }

    def lines(self) -> list[str]:
        """The score as text, without the notes."""
        shown = f"{self.headline_value:.4f}" if self.unit == "fraction" else f"{self.headline_value:.2f}"
        unit = {"%": " %", "fraction": "", "points": " points"}[self.unit]
        counts = f"{self.questions} questions, {self.answers} answers, {len(self.unreadable)} unreadable"
        lines = [f"{self.benchmark}  {self.headline_name} {shown}{unit}  ({counts})", *_lines(self.totals, 1)]
        return [*lines, f"unreadable, so wrong: {some(self.unreadable)}"] if self.unreadable else lines


def is_items_file(path: Path) -> bool:
    """Whether a file holds items as JSON lines, by the keys of its first line."""
    with path.open("rb") as file:
        line = file.readline(_MAX_LINE_BYTES)
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError):
        return False
    keys = Item(id=0, text="", read_as=None, gold="", score=0.0).as_json().keys()
    return isinstance(entry, dict) and entry.keys() == keys


def mean(values: Sequence[float]) -> float:
    """The mean as Python sums it, 0.0 of nothing."""
    return sum(values) / len(values) if values else 0.0


def _lines(values: dict[str, object], depth: int) -> list[str]:
    lines = []
    for name, value in values.items():
        if name == "printed":
            continue
        if isinstance(value, dict) and depth == 1:
            lines += [f"  {name}", *_lines(value, depth + 1)]
        else:
            lines.append(f"{'  ' * depth}{name}  {_shown(value)}")
    return lines


def _shown(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {_shown(one)}" for name, one in value.items())
    return f"{value:.4f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)
