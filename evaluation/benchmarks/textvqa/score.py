"""The score of TextVQA, as LLaVA's eval_textvqa.py and m4c_evaluator.py give it."""

from collections.abc import Sequence
from pathlib import Path

from alignkd.evaluation.answers import Answer, prompt_of
from alignkd.evaluation.benchmarks.textvqa.annotation import Key, read_annotation
from alignkd.evaluation.benchmarks.textvqa.prompt import has_tokens, question_of
from alignkd.evaluation.benchmarks.textvqa.reading import normalise
from alignkd.evaluation.completeness import count_note, incomplete_notes, refuse_unknown
from alignkd.evaluation.folder import question_file
from alignkd.evaluation.listed import quoted
from alignkd.evaluation.question_lines import read_lines
from alignkd.evaluation.score import Item, Score, mean
from alignkd.vlm.errors import InputError

PUBLISHED_QUESTIONS = 5_000
# so many other people must have given an answer for one point
_FULL_AGREEMENT = 3


def score_answers(folder: Path, answers: Sequence[Answer], *, as_original: bool = False) -> Score:
    """Mean agreement with the answers of ten people, in per cent.

    The mean is over the answers. With `as_original`, missing answers are not noticed, and each of several counts.

    Raises:
        InputError: a prompt of unknown form; an answer to an unknown question; without `as_original`: missing or
            doubled answers.
    """
    people = read_annotation(folder)
    keys = [_key(answer.question_id, prompt_of(answer), answer.place) for answer in answers]
    refuse_unknown(people, keys, "the annotation of textvqa")
    asked = _asked(folder)
    notes = incomplete_notes(asked, keys, as_original=as_original)
    items = tuple(_item(answer, people[key]) for answer, key in zip(answers, keys, strict=True))
    share = mean([item.score for item in items])
    return Score(
        benchmark="textvqa",
        headline_name="accuracy",
        headline_value=100 * share,
        unit="%",
        totals={
            "accuracy": 100 * share,
            "samples": len(items),
            "printed": [f"Samples: {len(items)}", f"Accuracy: {100 * share:.2f}%"],
        },
        questions=len(asked),
        answers=len(items),
        notes=(*count_note(len(asked), PUBLISHED_QUESTIONS, "questions"), *notes, *_token_notes(answers)),
        items=items,
    )


def agreement(answer: str, people: Sequence[str]) -> float:
    """Points of a normalised answer, from the normalised answers of ten people.

    The mean over the people of min(1, n / 3), where n of the other nine gave this answer: 0, 0.3, 0.6, 0.9, or 1 for
    none, one, two, three, or more people.
    """
    num_same = people.count(answer)
    if not num_same:
        return 0.0
    return sum(min(1, (num_same - (one == answer)) / _FULL_AGREEMENT) for one in people) / len(people)


def _token_notes(answers: Sequence[Answer]) -> list[str]:
    without = sum(not has_tokens(prompt_of(answer)) for answer in answers)
    return [f"prompts without OCR tokens: {without}; with them the number is higher"] if without else []


def _asked(folder: Path) -> list[Key]:
    path = question_file(folder, "textvqa")
    return [_key(line.id, line.text, f"{path}: question {line.id}") for line in read_lines(folder, "textvqa")]


def _key(image: str | int, prompt: str, place: str) -> Key:
    question = question_of(prompt)
    if question is None:
        raise InputError(
            f"{place}: no question in the prompt {quoted(prompt)}; ask with the question file's own prompts"
        )
    return image, question


def _item(answer: Answer, people: Sequence[str]) -> Item:
    reading, gold = normalise(answer.text), [normalise(one) for one in people]
    return Item(
        id=answer.question_id, text=answer.text, read_as=reading, gold=tuple(gold), score=agreement(reading, gold)
    )
