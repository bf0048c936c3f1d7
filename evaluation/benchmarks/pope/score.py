"""The score of POPE, as LLaVA's eval_pope.py gives it: the mean of the F1 of the categories is reported."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from alignkd.evaluation.answers import Answer
from alignkd.evaluation.benchmarks.pope.annotation import (
    Category,
    Label,
    num_other_texts,
    pairing_problem,
    read_annotation,
)
from alignkd.evaluation.benchmarks.pope.counts import Counts
from alignkd.evaluation.benchmarks.pope.reading import is_yes
from alignkd.evaluation.completeness import AS_ORIGINAL, count_note, incomplete_notes, refuse_unknown
from alignkd.evaluation.errors import AnswersError
from alignkd.evaluation.listed import quoted, some
from alignkd.evaluation.question_lines import QuestionLine, read_lines
from alignkd.evaluation.score import Item, Score, mean
from alignkd.vlm.errors import InputError

PUBLISHED_QUESTIONS = 8_910


def score_answers(folder: Path, answers: Sequence[Answer], *, as_original: bool = False) -> Score:
    """Mean of the F1 of the categories, between 0 and 1; F1 of a category is 0 if no answer is a right yes.

    The n-th answer of a category is compared with its n-th label.

    Raises:
        InputError: an answer to an unknown question; a category without answers; without `as_original`: missing or
            doubled answers, and labels of other questions than the answers.
    """
    questions = {line.id: line for line in read_lines(folder, "pope")}
    ids = [answer.question_id for answer in answers]
    refuse_unknown(questions, ids, "the question file of pope")
    notes = incomplete_notes(questions, ids, as_original=as_original)
    counts: dict[str, Counts] = {}
    items: list[Item] = []
    for category in _categories(folder, questions.values()):
        own = [answer for answer in answers if questions[answer.question_id].category == category.name]
        if not own:
            raise AnswersError(f"no answer of category {category.name}; generate them")
        notes += _pairing_notes(category, [questions[answer.question_id] for answer in own], as_original)
        readings, labels = [is_yes(answer.text) for answer in own], [label.is_yes for label in category.labels]
        counts[category.name] = Counts.of(readings, labels)
        items += [_item(answer, label) for answer, label in zip(own, category.labels, strict=False)]
    mean_f1 = mean([count.f1 for count in counts.values()])
    return Score(
        benchmark="pope",
        headline_name="mean_f1",
        headline_value=mean_f1,
        unit="fraction",
        totals={
            "by_category": {name: count.as_json() for name, count in counts.items()},
            "mean_accuracy": mean([count.accuracy for count in counts.values()]),
            "mean_f1": mean_f1,
        },
        questions=len(questions),
        answers=len(items),
        notes=(*count_note(len(questions), PUBLISHED_QUESTIONS, "questions"), *notes, *_unsaid_notes(items)),
        items=tuple(items),
    )


def _categories(folder: Path, questions: Iterable[QuestionLine]) -> list[Category]:
    categories = read_annotation(folder)
    known = {category.name for category in categories}
    for question in questions:
        if question.category not in known:
            raise InputError(
                f"{categories[0].path.parent}: no annotation of category {quoted(question.category)} of question "
                f"{question.id} (there is {', '.join(sorted(known))}); use question file and annotation of one release"
            )
    return categories


def _pairing_notes(category: Category, questions: Sequence[QuestionLine], as_original: bool) -> list[str]:
    problem = pairing_problem(category, questions)
    if problem is None:
        other = num_other_texts(category, questions)
        return [f"category {category.name}: questions with another text in the annotation: {other}"] if other else []
    if as_original:
        return [f"labels of other questions than the answers: {problem}"]
    raise AnswersError(
        f"{problem}; put the answers in the order of the question file, use the annotation of the same release "
        f"(docs/evaluation.md), or give {AS_ORIGINAL} for the original's number"
    )


def _unsaid_notes(items: Sequence[Item]) -> list[str]:
    """Every answer without a `no` is read as yes, also one that has neither word."""
    unsaid = [item.id for item in items if item.read_as == "yes" and "yes" not in item.text.lower()]
    return [f"answers read as yes without the word: {len(unsaid)} ({some(unsaid)})"] if unsaid else []


def _item(answer: Answer, label: Label) -> Item:
    reading = is_yes(answer.text)
    return Item(
        id=answer.question_id,
        text=answer.text,
        read_as="yes" if reading else "no",
        gold="yes" if label.is_yes else "no",
        score=float(reading == label.is_yes),
    )
