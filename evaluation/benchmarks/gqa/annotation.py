"""The annotation of GQA: `testdev_balanced_questions.json`."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alignkd.evaluation.folder import annotation
from alignkd.evaluation.listed import value_of
from alignkd.evaluation.reading import read_json
from alignkd.vlm.errors import InputError

# a step of the program is not counted if "operation: argument" contains one of these
_UNCOUNTED_STEPS = ("exist", "query: name", "choose name")


@dataclass(frozen=True)
class GqaQuestion:
    """A balanced question.

    Attributes:
        answer: the expected answer.
        structural_type: `query` is an open question, every other type a binary one.
        steps: number of steps of the question's program, without those that only name or exist.
        words: number of words of the question.
        group: global group for the distribution of answers; None for none.
    """

    answer: str
    structural_type: str
    semantic_type: str
    steps: int
    words: int
    group: str | None


def read_annotation(folder: Path) -> dict[str, GqaQuestion]:
    """The balanced questions by id, in the order of the file.

    Raises:
        InputError: the file is missing, is not an annotation of GQA, or has no balanced question.
    """
    path = annotation(folder, "gqa")
    values = read_json(path)
    try:
        questions = {key: _question(value) for key, value in values.items() if value["isBalanced"]}
    except (AttributeError, KeyError, TypeError) as error:
        raise InputError(f"{path}: not an annotation of GQA ({value_of(error)}); copy the file again") from None
    if not questions:
        raise InputError(f"{path}: no balanced question; copy the file again")
    return questions


def _question(value: Mapping[str, Any]) -> GqaQuestion:
    group = value["groups"]["global"]
    return GqaQuestion(
        answer=_text(value["answer"]),
        structural_type=_text(value["types"]["structural"]),
        semantic_type=_text(value["types"]["semantic"]),
        steps=sum(_is_counted(step) for step in value["semantic"]),
        words=len(_text(value["question"]).split()),
        group=None if group is None else _text(group),
    )


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value_of(value)} instead of a text")
    return value


def _is_counted(step: dict[str, object]) -> bool:
    line = f"{step['operation']}: {step['argument']}"
    return not any(part in line for part in _UNCOUNTED_STEPS)
