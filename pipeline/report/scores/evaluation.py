"""One evaluation as `alignkd report` compares it, from the files that `alignkd eval` wrote; nothing is recomputed."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from alignkd.disk.opening import read_regular
from alignkd.evaluation.benchmark import BENCHMARKS
from alignkd.pipeline.config.eval_place import RESULTS, EvaluatedModel
from alignkd.vlm.errors import InputError, one_line, unreadable

QUESTIONS = "questions.json"
# settings that make the numbers of two models incomparable
SETTINGS = ("dtype", "prompts", "template")


class Column(NamedTuple):
    """A number of the table.

    Attributes:
        benchmark: name, such as `gqa`.
        first: None for the benchmark's own number; else the number is the mean over so many first questions, in per
            cent, and stands in a column of its own.
    """

    benchmark: str
    first: int | None

    @property
    def unit_of(self) -> str:
        """The name in whose units the number is: the benchmark's own, or per cent."""
        return self.benchmark if self.first is None else "part"

    @property
    def title(self) -> str:
        """Heading of the column."""
        title = BENCHMARKS[self.benchmark].title
        return title if self.first is None else f"{title}, first {self.first}"


@dataclass(frozen=True, kw_only=True)
class Number:
    """One number, and what identifies the questions that it is over.

    Attributes:
        value: per cent, or points of MME; None if there is no score.
        why_not: why there is no score; None if there is one.
        questions: how many were asked.
        sha256: hash of the questions; None if it is not known.
        unreadable: answers that no rule could read.
    """

    value: float | None
    why_not: str | None
    questions: int
    sha256: str | None
    unreadable: int


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """The scores of one checkpoint.

    Attributes:
        name: its name in the table, each once.
        path: its folder.
        model: which model of a run it is; None if it was evaluated on its own.
        run: output folder of the training whose student it is; None for any other model.
        checkpoint, weights: folder or hub id, and hash of the weights.
        settings: dtype, prompts and template.
        numbers: by column.
        average: that of Table 1; None unless all six benchmarks have a score.
        notes: what is to be known about the numbers.
    """

    name: str
    path: Path
    model: EvaluatedModel | None
    run: Path | None
    checkpoint: str
    weights: str
    settings: dict[str, str]
    numbers: dict[Column, Number]
    average: float | None
    notes: tuple[str, ...]

    def is_same(self, other: "Evaluation") -> bool:
        """Whether the same weights got the same numbers with the same settings."""
        return (self.weights, self.settings, self.numbers) == (other.weights, other.settings, other.numbers)


def read_evaluation(
    folder: Path, *, name: str, model: EvaluatedModel | None = None, run: Path | None = None
) -> Evaluation:
    """The evaluation in a folder.

    Args:
        name, model, run: see `Evaluation`.

    Raises:
        InputError: the folder has no results of `alignkd eval`.
    """
    file = folder / RESULTS
    try:
        results = json.loads(read_regular(file))
        return Evaluation(
            name=name,
            path=folder,
            model=model,
            run=run,
            checkpoint=results["checkpoint"],
            weights=results["weights"],
            settings={key: str(results[key]) for key in SETTINGS if key in results},
            numbers=dict(_number(folder, one, found) for one, found in results["benchmarks"].items()),
            average=results["average"],
            notes=tuple(results["notes"]),
        )
    except OSError as error:
        raise unreadable(file, error) from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(
            f"{file}: not written by `alignkd eval` ({one_line(repr(error))[:80]}); give its --out folder"
        ) from error


def _number(folder: Path, name: str, found: Mapping[str, Any]) -> tuple[Column, Number]:
    value, part = found.get("table_value"), found.get("part")
    if part is not None:
        value = 100.0 * part["mean_score"]
    column = Column(BENCHMARKS[name].name, found["limit"])
    return column, Number(
        value=value,
        why_not=None if value is not None else found["no_score"],
        questions=found["questions"],
        sha256=_hash_of_questions(folder / name / QUESTIONS),
        unreadable=len(found.get("unreadable", ())),
    )


def _hash_of_questions(file: Path) -> str | None:
    try:
        return str(json.loads(read_regular(file))["sha256"])
    except FileNotFoundError:
        return None
