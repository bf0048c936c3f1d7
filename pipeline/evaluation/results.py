"""The result of an evaluation: answers file and score of each benchmark, and `results.json` over all of them."""

import hashlib
import json
from collections import defaultdict, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alignkd.disk.whole_file import write_whole
from alignkd.evaluation.answers import Answer, answer_line, read_answers
from alignkd.evaluation.benchmark import BENCHMARKS
from alignkd.evaluation.errors import AnswersError
from alignkd.evaluation.question import Question
from alignkd.evaluation.score import Item, Score, mean
from alignkd.evaluation.table import table1_average, table_row
from alignkd.pipeline.config.eval_place import RESULTS
from alignkd.pipeline.evaluation.journal import Answered
from alignkd.pipeline.evaluation.output import ANSWERS, SCORE, EvalOutput, read_object
from alignkd.pipeline.evaluation.parts import AnswerParts
from alignkd.storage.errors import disk_errors
from alignkd.vlm.errors import InputError

ID_LENGTH = 22


@dataclass(frozen=True, kw_only=True)
class AskedBenchmark:
    """A benchmark whose questions were asked.

    Attributes:
        data: its folder with questions and annotation.
        parts: its answers so far.
        limit: their number if the benchmark has more; None for all.
        model_id: see `settings.model_name`.
    """

    name: str
    data: Path
    parts: AnswerParts
    limit: int | None
    model_id: str

    def result(self) -> dict[str, Any]:
        """What `results.json` has on it, after the answers file is written where all answers are there.

        Raises:
            InputError: the score would be wrong, or the annotation is unusable.
            StoreError: the answers file cannot be written.
        """
        questions, asked = self.parts.questions, self.parts.answers()
        answers = [one for one in asked if one.unusable is None]
        unusable = [one for one in asked if one.unusable is not None]
        seconds = sum(one.seconds for one in answers)
        processes = self.parts.processes()
        result = {
            "benchmark": self.name,
            "headline": None,
            "questions": len(questions),
            "limit": self.limit,
            "answered": len(answers),
            "unusable": [
                {"position": one.position, "id": questions[one.position].id, "reason": one.unusable} for one in unusable
            ],
            "cut_answers": sum(not one.finished for one in answers),
            "seconds": round(seconds, 3),
            "questions_per_second": round(len(answers) / seconds, 3) if seconds else None,
            "devices": _distinct(process.device for process in processes),
            "batch": _distinct(process.batch for process in processes),
            "versions": _distinct(process.versions for process in processes),
            "no_score": _why_no_score(len(questions), len(answers), len(unusable)),
        }
        file = self.parts.path / ANSWERS
        with disk_errors(f"answers {file}"):
            if result["no_score"] is not None:
                file.unlink(missing_ok=True)
                return result
            write_whole(file, "".join(self._lines(answers)))
        return result | self._scored(file)

    def _lines(self, answers: Sequence[Answered]) -> list[str]:
        return [
            answer_line(
                question, one.text, answer_id=_answer_id(self.name, one.position, question), model_id=self.model_id
            )
            for question, one in zip(self.parts.questions, answers, strict=True)
        ]

    def _scored(self, file: Path) -> dict[str, Any]:
        """The score of the answers file; of a part of the questions, the mean over them, without a headline."""
        answers, score = read_answers(file), BENCHMARKS[self.name].score
        try:
            if self.limit is None:
                return _score_json(score(self.data, answers))
            every = BENCHMARKS[self.name].questions(self.data)
            filled = [*answers, *(unanswered(question) for question in every[len(answers) :])]
            return _part_json(score(self.data, filled), answers)
        except AnswersError as error:
            raise InputError(f"{file}: {error}") from None


def unanswered(question: Question) -> Answer:
    """An empty answer."""
    return Answer(question_id=question.id, prompt=question.prompt, text="", fields=question.fields)


def write_results(output: EvalOutput, about: Mapping[str, Any], asked: Sequence[AskedBenchmark]) -> dict[str, Any]:
    """Write the answers files and scores of some benchmarks, and `results.json` over all that OUT has.

    Args:
        about: checkpoint and settings, for the head of `results.json`.

    Returns:
        Content of `results.json`.

    Raises:
        InputError: as `AskedBenchmark.result`.
        StoreError: a file cannot be written.
    """
    for benchmark in asked:
        with output.locked(), disk_errors(f"--out {output.path}"):  # the last of several processes sees all answers
            write_whole(benchmark.parts.path / SCORE, _json(benchmark.result()))
    with output.locked(), disk_errors(f"--out {output.path}"):
        found = {name: _score_in(output.path / name / SCORE) for name in _scored_in(output.path)}
        results = {**about, **_summary(found), "benchmarks": found}
        write_whole(output.path / RESULTS, _json(results))
    return results


def _scored_in(folder: Path) -> list[str]:
    return [name for name in BENCHMARKS if (folder / name / SCORE).exists()]


def _score_in(file: Path) -> dict[str, Any]:
    found = read_object(file) or {}
    if "headline" not in found:
        raise InputError(
            f"{file}: not written by `alignkd eval`; remove it and score this benchmark again, which asks nothing"
        )
    return found


def _summary(found: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The row of Table 1, with the benchmarks that have a score."""
    row = {name: one["table_value"] for name, one in found.items() if one["headline"] is not None}
    return {"row": row, "average": table1_average(row)}


def _score_json(score: Score) -> dict[str, Any]:
    values: dict[str, Any] = {**score.as_json(), "table_value": table_row([score])[score.benchmark]}
    return values


def _part_json(score: Score, answers: Sequence[Answer]) -> dict[str, Any]:
    """Points of the first questions alone, from a score of all.

    Args:
        answers: those to the first questions. Ids may repeat; the items of one id are in the order of its answers.
    """
    items: dict[str | int, deque[Item]] = defaultdict(deque)
    for item in score.items:
        items[item.id].append(item)
    found = [items[answer.question_id].popleft() for answer in answers if items[answer.question_id]]
    return {
        "part": {"questions": len(found), "mean_score": mean([item.score for item in found])},
        "unreadable": [item.id for item in found if item.read_as is None],
        "no_score": f"only the first {len(answers)} questions were asked, which is not a number of the benchmark",
    }


def _why_no_score(questions: int, answered: int, unusable: int) -> str | None:
    if left := questions - answered - unusable:
        return (
            f"{left} of {questions} questions are not asked yet; run the same command again, unless another process "
            "asks them"
        )
    if unusable:
        return f"{unusable} of {questions} questions could not be asked; a score without them would be another number"
    return None


def _answer_id(benchmark: str, position: int, question: Question) -> str:
    """As unique as the original's random ids, and the same in every run."""
    values = json.dumps([benchmark, position, question.id, question.prompt])
    return hashlib.sha256(values.encode()).hexdigest()[:ID_LENGTH]


def _distinct(values: Any) -> list[Any]:
    found: list[Any] = []
    for value in values:
        if value not in found:
            found.append(value)
    return found


def _json(values: Mapping[str, Any]) -> str:
    return json.dumps(values, indent=1) + "\n"
