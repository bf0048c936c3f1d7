"""The score of ScienceQA, as LLaVA's eval_science_qa.py gives it."""

from collections.abc import Sequence
from pathlib import Path
from string import ascii_uppercase

from alignkd.evaluation.answers import Answer, prompt_of
from alignkd.evaluation.benchmarks.sqa.annotation import Problem, read_annotation
from alignkd.evaluation.benchmarks.sqa.questions import IMAGE_MARK
from alignkd.evaluation.benchmarks.sqa.reading import read_choice, read_letter
from alignkd.evaluation.completeness import count_note, incomplete_notes
from alignkd.evaluation.errors import AnswersError
from alignkd.evaluation.score import Item, Score, mean

PUBLISHED_QUESTIONS = 4_241


def score_answers(folder: Path, answers: Sequence[Answer], *, as_original: bool = False) -> Score:
    """Accuracy over the questions whose prompt has an image, in per cent; the accuracy over all is in the totals.

    Answers to other questions are ignored. With `as_original`, the last of several answers counts, and a question
    without an answer is wrong and not one with an image.

    Raises:
        InputError: a line without a prompt; no prompt with an image; without `as_original`: missing or doubled answers.
    """
    problems = read_annotation(folder)
    notes = incomplete_notes(problems, [answer.question_id for answer in answers], as_original=as_original)
    by_id = {answer.question_id: answer for answer in answers}
    given = {key: by_id[key] for key in problems if key in by_id}
    items = {key: _item(answer, problems[key]) for key, answer in given.items()}
    with_image = [key for key, answer in given.items() if IMAGE_MARK in prompt_of(answer)]
    if not with_image:
        raise AnswersError(
            f"no prompt has {IMAGE_MARK}, so there are no questions with an image; generate the prompts too"
        )
    scores = [items[key].score if key in items else 0.0 for key in problems]
    image_scores = [items[key].score for key in with_image]
    return Score(
        benchmark="sqa",
        headline_name="image_accuracy",
        headline_value=mean(image_scores) * 100,
        unit="%",
        totals=_totals(scores, image_scores),
        questions=len(problems),
        answers=len(items),
        unreadable=tuple(item.id for item in items.values() if item.read_as is None),
        notes=(
            *count_note(len(problems), PUBLISHED_QUESTIONS, "questions"),
            *notes,
            *_image_notes(problems, given, with_image),
        ),
        items=tuple(items.values()),
    )


def _item(answer: Answer, problem: Problem) -> Item:
    return Item(
        id=answer.question_id,
        text=answer.text,
        read_as=read_letter(answer.text),
        gold=ascii_uppercase[problem.answer],
        score=float(read_choice(answer.text, problem.num_choices) == problem.answer),
    )


def _totals(scores: Sequence[float], image_scores: Sequence[float]) -> dict[str, object]:
    accuracy, image_accuracy = mean(scores) * 100, mean(image_scores) * 100
    correct = round(sum(scores))
    return {
        "image_accuracy": image_accuracy,
        "image_questions": len(image_scores),
        "image_right": round(sum(image_scores)),
        "accuracy": accuracy,
        "correct": correct,
        "questions": len(scores),
        "printed": (
            f"Total: {len(scores)}, Correct: {correct}, Accuracy: {accuracy:.2f}%, IMG-Accuracy: {image_accuracy:.2f}%"
        ),
    }


def _image_notes(problems: dict[str, Problem], given: dict[str, Answer], with_image: Sequence[str]) -> list[str]:
    """The original decides by the prompt which questions have an image; `problems.json` has it too."""
    expected = sum(problems[key].has_image for key in given)
    if len(with_image) == expected:
        return []
    return [f"prompts with {IMAGE_MARK}: {len(with_image)}, questions with an image: {expected}"]
