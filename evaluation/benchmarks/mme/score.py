"""The score of MME, as its calculation.py gives it after LLaVA's conversion of the answers."""

from collections.abc import Sequence
from pathlib import Path

from alignkd.evaluation.answers import Answer, prompt_of
from alignkd.evaluation.benchmarks.mme.annotation import (
    COGNITION,
    PERCEPTION,
    Annotation,
    Key,
    category_of,
    image_of,
)
from alignkd.evaluation.benchmarks.mme.reading import read_answer
from alignkd.evaluation.completeness import AS_ORIGINAL, count_note, incomplete_notes, refuse_unknown
from alignkd.evaluation.errors import AnswersError
from alignkd.evaluation.folder import question_file
from alignkd.evaluation.listed import quoted, some
from alignkd.evaluation.question_lines import read_lines
from alignkd.evaluation.score import Item, Score, mean
from alignkd.vlm.errors import InputError

PUBLISHED_QUESTIONS = 2_374


def score_answers(folder: Path, answers: Sequence[Answer], *, as_original: bool = False) -> Score:
    """Points of the ten categories of perception, at most 2000; those of cognition are in the totals.

    Points of a category: 100 times the share of right answers, plus 100 times the share of images with two right
    answers. Two consecutive answers of a category are an image.

    Raises:
        InputError: a category without answers, or with an odd number of them; an answer to an unknown question; without
            `as_original`: missing or doubled answers, and pairs of answers to different images.
    """
    expected = Annotation(folder)
    path = str(question_file(folder, "mme"))
    asked = [_key(expected, line.id, line.text, path) for line in read_lines(folder, "mme")]
    keys = [_key(expected, answer.question_id, prompt_of(answer), answer.place) for answer in answers]
    refuse_unknown(asked, keys, "the question file of mme")
    notes = incomplete_notes(asked, keys, as_original=as_original)
    items = [_item(answer, expected.answers[key]) for answer, key in zip(answers, keys, strict=True)]
    points: dict[str, float] = {}
    for category in PERCEPTION + COGNITION:
        own = [item for item in items if category_of(item.id) == category]
        notes += _pair_notes(category, own, as_original)
        points[category] = _points([item.score for item in own])
    perception = sum(points[category] for category in PERCEPTION)
    return Score(
        benchmark="mme",
        headline_name="perception",
        headline_value=perception,
        unit="points",
        totals={
            "perception": perception,
            "cognition": sum(points[category] for category in COGNITION),
            "by_category": points,
        },
        questions=len(asked),
        answers=len(items),
        unreadable=tuple(item.id for item in items if item.read_as is None),
        notes=(*count_note(len(asked), PUBLISHED_QUESTIONS, "questions"), *notes),
        items=tuple(items),
    )


def _points(scores: Sequence[float]) -> float:
    both = [float(first == second == 1) for first, second in zip(scores[::2], scores[1::2], strict=True)]
    return mean(scores) * 100 + mean(both) * 100


def _key(expected: Annotation, question_id: str | int, prompt: str, place: str) -> Key:
    key = expected.find(question_id, prompt)
    if key is None:
        raise InputError(
            f"{place}: {expected.path} has no such question on image {some([question_id])}: {quoted(prompt)}; "
            "ask with the prompts of the question file that belongs to it"
        )
    return key


def _item(answer: Answer, gold: str) -> Item:
    reading = read_answer(answer.text)
    return Item(id=answer.question_id, text=answer.text, read_as=reading, gold=gold, score=float(reading == gold))


def _pair_notes(category: str, items: Sequence[Item], as_original: bool) -> list[str]:
    """A line if answers to different images are paired; such pairs, and answers without a pair, are refused."""
    if not items:
        raise AnswersError(f"no answer of category {category}; generate the answers to all categories of MME")
    if len(items) % 2:
        raise AnswersError(f"{len(items)} answers of category {category}, not two to each image; generate all answers")
    for first, second in zip(items[::2], items[1::2], strict=True):
        if image_of(first.id) != image_of(second.id):
            problem = f"category {category}: consecutive answers to different images ({first.id}, {second.id})"
            if as_original:
                return [f"{problem} are scored as one image"]
            raise AnswersError(
                f"{problem}, of which the score makes one image; put the answers in the order of the question file, "
                f"or give {AS_ORIGINAL} for the original's number"
            )
    return []
