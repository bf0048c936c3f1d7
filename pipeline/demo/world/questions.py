"""Questions about a scene and their right answers, and the conversations made of them.

Every answer is computed from the cell labels, so it is right by construction. A question is in lower case and ends
with "?"; an answer is one word or one number. Conversations have LLaVA's format.

Shape letters: R = 3 grid rows, C = 3 grid columns.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from alignkd.pipeline.demo.world.scenes import (
    CELL_NAMES,
    COLUMN_NAMES,
    EMPTY,
    ROW_NAMES,
    Pool,
    Scene,
    draw_scene,
    make_scene,
)
from alignkd.vlm.data.turn_checks import IMAGE_PLACEHOLDER
from alignkd.vlm.errors import InputError

T = TypeVar("T")

MAX_TURNS = 6
_QUESTION_STREAM, _TEXT_STREAM = 201, 202
_EMPTY_CELL_SHARE = 0.15
_ABSENT_DIGIT_SHARE = 1 / 3


@dataclass(frozen=True, kw_only=True)
class Question:
    """One question with its answer."""

    question_type: str
    subject: str
    """What the question is about; type and subject identify a question, whatever its wording."""
    text: str
    answer: str


Conversation = list[dict[str, str]]
"""LLaVA's list of `{"from": "human" | "gpt", "value": ...}`."""


class StreamedScene(NamedTuple):
    """One item of `scene_stream`."""

    image: Image.Image
    conversation: Conversation
    labels_RC: NDArray[np.int8]
    """Digit of each grid cell, int8 [3, 3], -1 where empty; a two-row scene has no middle row."""


_PHRASINGS: dict[str, tuple[str, ...]] = {
    "position": ("what digit is {}?", "which digit is {}?", "what is the {} digit?"),
    "count": ("how many {}s?", "how many {}s are there?", "how many digits are {}?"),
    "largest": ("which digit is largest?", "what is the largest digit?", "largest digit?"),
    "smallest": ("which digit is smallest?", "what is the smallest digit?", "smallest digit?"),
    "sum": ("sum of the {}?", "what is the sum of the {}?", "what is the {} sum?"),
    "exists": ("is there {}?", "is any digit {}?", "is {} there?"),
    "total": ("how many digits are there?", "how many digits?", "how many are there?"),
    "arithmetic": ("what is {} plus {}?", "{} plus {} is what?", "what is the sum of {} and {}?"),
    "compare": ("which is larger, {} or {}?", "what is larger, {} or {}?", "which digit is larger, {} or {}?"),
}


def ask_position(scene: Scene, rng: np.random.Generator) -> Question:
    """Ask for the digit in a cell; the answer is `none` for an empty cell."""
    cells = [(row, column) for row in scene.grid_rows for column in range(len(COLUMN_NAMES))]
    labels_RC = scene.labels_RC
    filled = [cell for cell in cells if labels_RC[cell] != EMPTY]
    empty = [cell for cell in cells if labels_RC[cell] == EMPTY]
    pick_empty = bool(empty) and rng.random() < _EMPTY_CELL_SHARE
    row, column = _pick(rng, empty if pick_empty else filled)
    answer = "none" if pick_empty else str(labels_RC[row, column])
    return _word(rng, "position", answer, CELL_NAMES[row][column])


def ask_count(scene: Scene, rng: np.random.Generator) -> Question:
    """Ask how often a digit occurs; it occurs in two of three questions."""
    values = [digit.value for digit in scene.digits]
    value = _pick_value(rng, values, absent_share=_ABSENT_DIGIT_SHARE)
    return _word(rng, "count", str(values.count(value)), str(value))


def ask_largest(scene: Scene, rng: np.random.Generator) -> Question:
    """Ask for the largest digit."""
    return _word(rng, "largest", str(max(digit.value for digit in scene.digits)))


def ask_smallest(scene: Scene, rng: np.random.Generator) -> Question:
    """Ask for the smallest digit."""
    return _word(rng, "smallest", str(min(digit.value for digit in scene.digits)))


def ask_sum(scene: Scene, rng: np.random.Generator) -> Question:
    """Ask for the sum of a row or a column; 0 if it is empty."""
    by_row, by_column = ([0] * len(ROW_NAMES), [0] * len(COLUMN_NAMES))
    for digit in scene.digits:
        by_row[digit.row] += digit.value
        by_column[digit.column] += digit.value
    lines = [(f"{ROW_NAMES[row]} row", by_row[row]) for row in scene.grid_rows]
    lines += [(f"{name} column", total) for name, total in zip(COLUMN_NAMES, by_column, strict=True)]
    name, total = _pick(rng, lines)
    return _word(rng, "sum", str(total), name)


def ask_exists(scene: Scene, rng: np.random.Generator) -> Question:
    """Ask whether a digit occurs; `yes` and `no` are equally frequent."""
    values = [digit.value for digit in scene.digits]
    value = _pick_value(rng, values, absent_share=0.5)
    return _word(rng, "exists", "yes" if value in values else "no", _with_article(value))


def ask_total(scene: Scene, rng: np.random.Generator) -> Question:
    """Ask for the number of digits in the scene."""
    return _word(rng, "total", str(len(scene.digits)))


def ask_arithmetic(rng: np.random.Generator) -> Question:
    """Ask for the sum of two given digits, without a picture."""
    augend, addend = (int(value) for value in rng.integers(0, 10, size=2))
    return _word(rng, "arithmetic", str(augend + addend), str(augend), str(addend))


def ask_compare(rng: np.random.Generator) -> Question:
    """Ask for the larger of two different digits, without a picture."""
    values = [int(value) for value in rng.choice(10, size=2, replace=False)]
    return _word(rng, "compare", str(max(values)), *map(str, values))


_SCENE_ASKERS: dict[str, tuple[Callable[[Scene, np.random.Generator], Question], float]] = {
    "position": (ask_position, 3.0),
    "count": (ask_count, 2.0),
    "sum": (ask_sum, 2.0),
    "exists": (ask_exists, 1.5),
    "largest": (ask_largest, 1.0),
    "smallest": (ask_smallest, 1.0),
    "total": (ask_total, 1.0),
}
"""Question type -> function that asks it about a scene, and its relative frequency."""
_TEXT_ASKERS: dict[str, Callable[[np.random.Generator], Question]] = {
    "arithmetic": ask_arithmetic,
    "compare": ask_compare,
}
SCENE_QUESTION_TYPES = tuple(_SCENE_ASKERS)
TEXT_QUESTION_TYPES = tuple(_TEXT_ASKERS)


def ask_scene(question_type: str, scene: Scene, rng: np.random.Generator) -> Question:
    """A question of one of `SCENE_QUESTION_TYPES`."""
    return _SCENE_ASKERS[question_type][0](scene, rng)


def ask_text(question_type: str, rng: np.random.Generator) -> Question:
    """A question of one of `TEXT_QUESTION_TYPES`."""
    return _TEXT_ASKERS[question_type](rng)


def scene_questions(scene: Scene, max_questions: int) -> list[Question]:
    """1 to `max_questions` (at most `MAX_TURNS`) different questions; a pure function of the arguments."""
    rng = np.random.default_rng([_QUESTION_STREAM, scene.seed, scene.number])
    weights = np.array([weight for _, weight in _SCENE_ASKERS.values()])
    shares = weights / weights.sum()

    def ask() -> Question:
        question_type = SCENE_QUESTION_TYPES[int(rng.choice(len(shares), p=shares))]
        return ask_scene(question_type, scene, rng)

    return _different(ask, _how_many(rng, max_questions))


def text_questions(seed: int, number: int, max_questions: int) -> list[Question]:
    """Like `scene_questions`, for a conversation without a picture."""
    rng = np.random.default_rng([_TEXT_STREAM, seed, number])
    return _different(lambda: ask_text(_pick(rng, TEXT_QUESTION_TYPES), rng), _how_many(rng, max_questions))


def check_max_questions(max_questions: int) -> None:
    """Refuse a number of turns that some conversations cannot reach without repeating a question."""
    if not 1 <= max_questions <= MAX_TURNS:
        raise InputError(
            f"questions_per_scene: expected 1 to {MAX_TURNS}, found {max_questions}; choose a number in between"
        )


def conversation(questions: list[Question], *, with_image: bool) -> Conversation:
    """The questions as turns in LLaVA's form; the image token opens the first."""
    turns: Conversation = []
    for question in questions:
        prefix = f"{IMAGE_PLACEHOLDER}\n" if with_image and not turns else ""
        turns.append({"from": "human", "value": prefix + question.text})
        turns.append({"from": "gpt", "value": question.answer})
    return turns


def scene_stream(seed: int, pool: Pool, *, max_questions: int = MAX_TURNS) -> Iterator[StreamedScene]:
    """Endless scenes 0, 1, 2, ... of a seed with their conversations, for training a teacher."""
    number = 0
    while True:
        scene = make_scene(seed, number, pool)
        turns = conversation(scene_questions(scene, max_questions), with_image=True)
        yield StreamedScene(draw_scene(scene), turns, scene.labels_RC)
        number += 1


def _how_many(rng: np.random.Generator, max_questions: int) -> int:
    """Number of turns of a conversation."""
    check_max_questions(max_questions)
    return int(rng.integers(1, max_questions + 1))


def _different(ask: Callable[[], Question], how_many: int) -> list[Question]:
    """Ask until `how_many` questions differ in type or subject."""
    questions: dict[tuple[str, str], Question] = {}
    while len(questions) < how_many:
        question = ask()
        questions.setdefault((question.question_type, question.subject), question)
    return list(questions.values())


def _word(rng: np.random.Generator, question_type: str, answer: str, *subject: str) -> Question:
    """Phrase a question about `subject` in one of the wordings of its type."""
    phrasing = _pick(rng, _PHRASINGS[question_type])
    return Question(
        question_type=question_type,
        subject=" ".join(subject),
        text=phrasing.format(*subject),
        answer=answer,
    )


def _pick(rng: np.random.Generator, options: Sequence[T]) -> T:
    return options[int(rng.integers(len(options)))]


def _pick_value(rng: np.random.Generator, present: list[int], *, absent_share: float) -> int:
    """Choose a digit; present digits are drawn by occurrence, so repeated ones are more frequent."""
    if rng.random() < absent_share:
        return _pick(rng, [value for value in range(10) if value not in present])
    return _pick(rng, present)


def _with_article(value: int) -> str:
    return f"an {value}" if value == 8 else f"a {value}"
