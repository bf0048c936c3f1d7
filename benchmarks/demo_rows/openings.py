"""The log of all evaluations on the pool `test`, and the figures that follow from it.

A row is opened once, after all its students are trained. An opening has two lines: one before the first evaluation, and
one with the answers of all students. A row whose settings have changed is opened again, so the log shows how often the
pool was used. The second line records which answers were right, so tables and intervals can be computed again from the
log and the questions.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np

from alignkd.pipeline.demo.evaluate import Answer, Evaluation, load_questions
from alignkd.pipeline.demo.recipes import Recipe
from alignkd.pipeline.demo.results.figures import visual_accuracy
from alignkd.pipeline.demo.settings import DemoSettings
from alignkd.pipeline.demo.world.dataset import DatasetFiles
from alignkd.vlm.data.sample import Sample
from alignkd.vlm.errors import InputError
from demo_rows.json_lines_log import Entry, JsonLinesLog, versions
from demo_rows.trials import config_of

TEACHER = "teacher"
_OPENED, _EVALUATED = "opened", "evaluated"


@dataclass(frozen=True)
class Opening:
    """One model row and the settings that it is evaluated with.

    Attributes:
        row: name of the row, or `TEACHER`.
        config: `opening_config` of the row; empty for the teacher.
    """

    row: str
    config: Mapping[str, Any]

    @classmethod
    def of(cls, recipe: Recipe, settings: DemoSettings) -> "Opening":
        """The opening of a row."""
        config = config_of(recipe, settings, 0)
        del config["train"]["seed"]
        return cls(recipe.name, config)


class OpeningLog(JsonLinesLog):
    """Two lines per opening: before its first evaluation, and with the answers of all its students.

    Lines of the second kind have row, config, seeds, steps, accuracy, by_type, right, questions, versions, date.
    """

    def evaluated(self, opening: Opening) -> Entry | None:
        """The line with the answers of a row with exactly these settings."""
        found = [line for line in self.entries() if line["event"] == _EVALUATED and _is_of(line, opening)]
        return found[-1] if found else None

    def times_opened(self, row: str) -> int:
        """With how many different settings a row has been opened."""
        configs: list[Any] = []
        for line in self.entries():
            if line["row"] == row and line["config"] not in configs:
                configs.append(line["config"])
        return len(configs)

    def open(self, opening: Opening) -> None:
        """Record that answers of this row are about to be seen.

        Raises:
            InputError: they have been seen already.
        """
        if (line := self.evaluated(opening)) is not None:
            raise InputError(f"{opening.row}: was evaluated on {line['date']}, see {self.path}; it is opened only once")
        self.append({"event": _OPENED, "row": opening.row, "config": opening.config, "date": _now()})

    def close(
        self,
        opening: Opening,
        evaluations: Sequence[Evaluation],
        questions: DatasetFiles,
        *,
        steps: int,
        seeds: Sequence[int],
    ) -> None:
        """Record the answers of all students of a row, in the order of `seeds`."""
        self.append(
            {
                "event": _EVALUATED,
                "row": opening.row,
                "config": opening.config,
                "seeds": list(seeds),
                "steps": steps,
                "accuracy": [visual_accuracy(evaluation) for evaluation in evaluations],
                "by_type": [evaluation.by_type for evaluation in evaluations],
                "right": [right_bits(evaluation) for evaluation in evaluations],
                "questions": digest(questions),
                "versions": versions(),
                "date": _now(),
            }
        )

    def evaluations(
        self, opening: Opening, questions: DatasetFiles, seeds: Sequence[int] | None = None
    ) -> list[Evaluation]:
        """The evaluations of a row, computed from its line; a wrong answer is empty in them.

        Args:
            seeds: only the students of these seeds, which must be among the evaluated ones; None: all.

        Raises:
            InputError: the row has not been evaluated, or not on these questions.
        """
        line = self.evaluated(opening)
        if line is None:
            raise InputError(f"{self.path}: has no evaluation of {opening.row} with its present settings; run it first")
        if line["questions"] != digest(questions):
            raise InputError(
                f"{self.path}: {opening.row} was evaluated on questions {line['questions'][:12]}, but "
                f"{questions.conversations} is {digest(questions)[:12]}; use the versions of that line"
            )
        asked = load_questions(questions.conversations)
        right = dict(zip(line["seeds"], line["right"], strict=True))
        return [from_right_bits(right[seed], asked) for seed in (right if seeds is None else seeds)]


def _is_of(line: Entry, opening: Opening) -> bool:
    return bool(line["row"] == opening.row and line["config"] == opening.config)


def right_bits(evaluation: Evaluation) -> str:
    """Which answers are right, one bit each, as hexadecimal digits."""
    return np.packbits([answer.right for answer in evaluation.answers]).tobytes().hex()


def from_right_bits(bits: str, asked: Sequence[tuple[Sample, str | None]]) -> Evaluation:
    """Inverse of `right_bits`; right answers are the expected ones, wrong ones empty.

    Args:
        asked: result of `load_questions`.
    """
    right = np.unpackbits(np.frombuffer(bytes.fromhex(bits), dtype=np.uint8), count=len(asked))
    answers = []
    for (sample, kind), is_right in zip(asked, right, strict=True):
        question, answer = (turn.value.strip() for turn in sample.turns)
        answers.append(
            Answer(
                id=sample.id,
                images=sample.images,
                question=question,
                question_type=kind,
                expected=answer,
                found=answer if is_right else "",
            )
        )
    return Evaluation(tuple(answers))


def digest(questions: DatasetFiles) -> str:
    """SHA-256 of the questions."""
    return hashlib.sha256(questions.conversations.read_bytes()).hexdigest()


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
