"""The score of GQA, as the benchmark's own eval.py gives it after LLaVA's conversion of the answers."""

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from alignkd.evaluation.answers import Answer
from alignkd.evaluation.benchmarks.gqa.annotation import GqaQuestion, read_annotation
from alignkd.evaluation.benchmarks.gqa.reading import read_answer
from alignkd.evaluation.completeness import count_note, incomplete_notes
from alignkd.evaluation.score import Item, Score, mean

PUBLISHED_QUESTIONS = 12_578
_OPEN = "query"
Name = TypeVar("Name", str, int)


def score_answers(folder: Path, answers: Sequence[Answer], *, as_original: bool = False) -> Score:
    """Accuracy over the balanced questions, in per cent.

    Answers to other questions are ignored. With `as_original`, the last of several answers to a question counts.

    Raises:
        InputError: a question has no answer; a question has several, without `as_original`; the annotation is unusable.
    """
    questions = read_annotation(folder)
    ids = [answer.question_id for answer in answers]
    notes = incomplete_notes(questions, ids, as_original=as_original, missing_is_fatal=True)
    by_id = {answer.question_id: answer for answer in answers}
    items = {key: _item(by_id[key], question) for key, question in questions.items()}
    totals = _totals(questions, items)
    return Score(
        benchmark="gqa",
        headline_name="accuracy",
        headline_value=mean([item.score for item in items.values()]) * 100,
        unit="%",
        totals=totals,
        questions=len(questions),
        answers=len(items),
        notes=(*count_note(len(questions), PUBLISHED_QUESTIONS, "questions"), *notes),
        items=tuple(items.values()),
    )


def _item(answer: Answer, question: GqaQuestion) -> Item:
    reading = read_answer(answer.text)
    return Item(
        id=answer.question_id,
        text=answer.text,
        read_as=reading,
        gold=question.answer,
        score=float(reading == question.answer),
    )


def _totals(questions: Mapping[str, GqaQuestion], items: Mapping[str, Item]) -> dict[str, object]:
    scored = [(question, items[key].score) for key, question in questions.items()]

    def accuracy(keep: Callable[[GqaQuestion], bool]) -> float:
        return mean([score for question, score in scored if keep(question)]) * 100

    totals: dict[str, object] = {
        "accuracy": accuracy(lambda question: True),
        "binary": accuracy(lambda question: question.structural_type != _OPEN),
        "open": accuracy(lambda question: question.structural_type == _OPEN),
        "distribution": _distribution(questions, items),
        "questions": len(scored),
        "right": sum(score == 1 for _, score in scored),
        "by_structural_type": _by(scored, lambda question: question.structural_type),
        "by_semantic_type": _by(scored, lambda question: question.semantic_type),
        "by_steps": _by(scored, lambda question: question.steps),
        "by_words": _by(scored, lambda question: question.words),
    }
    totals["printed"] = [
        f"Binary: {totals['binary']:.2f}%",
        f"Open: {totals['open']:.2f}%",
        f"Accuracy: {totals['accuracy']:.2f}%",
        f"Distribution: {totals['distribution']:.2f} (lower is better)",
    ]
    return totals


def _by(scored: Sequence[tuple[GqaQuestion, float]], key: Callable[[GqaQuestion], Name]) -> dict[str, object]:
    groups: dict[Name, list[float]] = defaultdict(list)
    for question, score in scored:
        groups[key(question)].append(score)
    return {
        str(name): {"accuracy": mean(groups[name]) * 100, "questions": len(groups[name])} for name in sorted(groups)
    }


def _distribution(questions: Mapping[str, GqaQuestion], items: Mapping[str, Item]) -> float:
    """Chi-square distance between given and expected answers in a global group, mean / 100; 0.0 without such groups.

    The mean is weighted by the number of questions of a group. Answers that are not expected in a group do not count.
    """
    gold: dict[str, Counter[str]] = defaultdict(Counter)
    given: dict[str, Counter[str | None]] = defaultdict(Counter)
    for key, question in questions.items():
        if question.group is not None:
            gold[question.group][question.answer] += 1
            given[question.group][items[key].read_as] += 1
    distances, weights = 0.0, 0
    for group, expected in gold.items():
        distance = sum((given[group][answer] - count) ** 2 / count for answer, count in expected.items())
        distances += distance * expected.total()
        weights += expected.total()
    return distances / weights / 100 if weights else 0.0
