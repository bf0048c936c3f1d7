"""Which questions a figure counts, and what can be had without looking at the picture."""

from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from alignkd.pipeline.demo.evaluate import QUESTION_TYPES_KEY, Answer, Evaluation
from alignkd.pipeline.demo.world.questions import SCENE_QUESTION_TYPES
from alignkd.vlm.data.entries.entry import sample_of_entry
from alignkd.vlm.data.open import open_data
from alignkd.vlm.data.source import DataSet


def visual(answers: Iterable[Answer]) -> tuple[Answer, ...]:
    """The answers to questions that need the picture; the other types give all they ask about in their text."""
    return tuple(answer for answer in answers if answer.question_type in SCENE_QUESTION_TYPES)


def visual_accuracy(evaluation: Evaluation) -> float:
    """Share of right answers to questions that need the picture, 0..1."""
    return Evaluation(visual(evaluation.answers)).accuracy


def most_frequent_answers(training_set: Path) -> dict[str, str]:
    """Question type -> its most frequent answer in a training set; of equally frequent ones the first."""
    counts = defaultdict[str, Counter[str]](Counter)
    file = open_data(DataSet(path=training_set))
    for index in range(len(file)):
        entry = file.entry(index)
        answers = [turn.value.strip() for turn in sample_of_entry(index, entry).turns if turn.speaker == "gpt"]
        for kind, answer in zip(entry[QUESTION_TYPES_KEY], answers, strict=True):
            counts[kind][answer] += 1
    return {kind: found.most_common(1)[0][0] for kind, found in counts.items()}


def without_looking(training_set: Path, asked: Evaluation) -> Evaluation:
    """The questions of `asked`, each answered with the most frequent answer of its type in the training set."""
    frequent = most_frequent_answers(training_set)
    return Evaluation(
        tuple(replace(answer, found=frequent.get(answer.question_type or "", "")) for answer in asked.answers)
    )
