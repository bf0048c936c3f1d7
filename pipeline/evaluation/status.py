"""`alignkd eval --status PATH`: what is answered so far, from the files of evaluations; loads no torch and no model."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from alignkd.disk.opening import read_regular
from alignkd.evaluation.benchmark import BENCHMARKS
from alignkd.evaluation.table import shown_value
from alignkd.pipeline.config.eval_place import EVALUATED, place_of
from alignkd.pipeline.console.printing import aligned, format_duration
from alignkd.pipeline.evaluation.output import QUESTIONS, RUN, SCORE, is_begun, read_object
from alignkd.pipeline.evaluation.parts import answered_in
from alignkd.teacher_dump.operation.status import read_workers
from alignkd.vlm.errors import InputError

State = Literal["complete", "running", "stopped"]


@dataclass(frozen=True, kw_only=True)
class BenchmarkStatus:
    """The answers to one benchmark.

    Attributes:
        state: `complete` if every question has its answer, `running` if a process answers, otherwise `stopped`.
        questions: number of questions that are asked.
        limit: this number if the benchmark has more; None for all.
        answered, unusable: questions with an answer, and questions that could not be asked.
        score: in the units of Table 1, of a limited benchmark the mean in per cent; None without a score.
        rate: questions per second of all running processes together.
        seconds_left: remaining time at this rate; None if no process runs.
    """

    benchmark: str
    state: State
    questions: int
    limit: int | None
    answered: int
    unusable: int
    score: float | None
    rate: float
    seconds_left: float | None


@dataclass(frozen=True, kw_only=True)
class EvalStatus:
    """An evaluation that runs, has ended or has crashed.

    Attributes:
        path: its folder.
        checkpoint, dtype: what answers.
        state: `running` if any benchmark is running, `complete` if all that were begun are complete, else `stopped`.
        benchmarks: those that were begun.
        not_begun: names of the others of the six; perhaps they are not asked for.
    """

    path: str
    checkpoint: str
    dtype: str
    state: State
    benchmarks: tuple[BenchmarkStatus, ...]
    not_begun: tuple[str, ...]


def eval_status(path: Path) -> list[EvalStatus]:
    """Read the progress of one evaluation or of several.

    Args:
        path: the folder of an evaluation, a folder that holds some, or the output folder of a training run.

    Raises:
        InputError: no evaluation has begun there, or a file is not one of `alignkd eval`.
        StoreError: a folder cannot be listed.
    """
    folders = _evaluations(path)
    if not folders:
        raise InputError(
            f"{path}: no evaluation has begun here; give the --out folder of `alignkd eval`, or the output folder of "
            "a run that has a section eval"
        )
    return [_of_folder(folder) for folder in folders]


def status_lines(statuses: Sequence[EvalStatus]) -> Iterator[str]:
    """The status for a terminal: for each evaluation a summary, then a line per benchmark."""
    for status in statuses:
        yield f"{status.path}: {status.state}, {status.checkpoint} in {status.dtype}"
        if status.benchmarks:
            yield from aligned([_HEADER, *map(_cells, status.benchmarks)])
        if status.not_begun:
            yield f"not begun: {', '.join(BENCHMARKS[name].title for name in status.not_begun)}"
        if status.state == "stopped":
            yield "no process answers questions; run the same `alignkd eval` again to resume"


_HEADER = ["benchmark", "state", "answered", "unusable", "score", "per second", "left"]


def _cells(one: BenchmarkStatus) -> list[str]:
    title = BENCHMARKS[one.benchmark].title
    return [
        title if one.limit is None else f"{title}, first {one.limit}",
        one.state,
        f"{one.answered:,} of {one.questions:,}",
        f"{one.unusable:,}",
        shown_value(one.benchmark if one.limit is None else "part", one.score),
        f"{one.rate:.2f}" if one.state == "running" else "-",
        "-" if one.seconds_left is None else format_duration(one.seconds_left),
    ]


def _evaluations(path: Path) -> list[Path]:
    """The folder itself, or the evaluations in it, or those of the training run; the models of a run first."""
    if is_begun(path):
        return [path]
    for folder in dict.fromkeys([path, place_of(path)]):
        if found := [one for one in folder.iterdir() if is_begun(one)] if folder.is_dir() else []:
            models: Sequence[str] = EVALUATED
            return sorted(found, key=lambda one: (models.index(one.name) if one.name in models else len(models), one))
    return []


def _of_folder(folder: Path) -> EvalStatus:
    settings = read_object(folder / RUN) or {}
    begun = tuple(_of_benchmark(folder, name) for name in BENCHMARKS if (folder / name / QUESTIONS).is_file())
    states = {one.state for one in begun}
    state: State = "running" if "running" in states else "complete" if states == {"complete"} else "stopped"
    return EvalStatus(
        path=str(folder),
        checkpoint=str(settings.get("checkpoint")),
        dtype=str(settings.get("dtype")),
        state=state,
        benchmarks=begun,
        not_begun=tuple(name for name in BENCHMARKS if name not in {one.benchmark for one in begun}),
    )


def _of_benchmark(folder: Path, name: str) -> BenchmarkStatus:
    file = folder / name / QUESTIONS
    settings = read_object(file) or {}
    questions, limit = settings.get("questions"), settings.get("limit")
    if not isinstance(questions, int) or not isinstance(limit, int | None):
        raise InputError(f"{file}: not written by `alignkd eval` (no number of questions); give its --out folder")
    # before the answers, so that a benchmark that ends in between is complete
    running = [worker for worker in read_workers(folder / name) if worker.state == "running"]
    found = answered_in(folder / name, questions)
    unusable = sum(one.unusable is not None for one in found)
    left, rate = questions - len(found), sum(worker.rate for worker in running)
    complete = len(found) - unusable == questions
    return BenchmarkStatus(
        benchmark=name,
        state="complete" if complete else "running" if running else "stopped",
        questions=questions,
        limit=limit,
        answered=len(found) - unusable,
        unusable=unusable,
        score=_score(folder / name / SCORE) if complete else None,
        rate=0.0 if complete else rate,
        seconds_left=left / rate if rate > 0 and not complete else None,
    )


def _score(file: Path) -> float | None:
    """The score that was written; None before it is."""
    try:
        found = json.loads(read_regular(file))
        part = found.get("part")
        value = found.get("table_value") if part is None else 100.0 * part["mean_score"]
        return None if value is None else float(value)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{file}: not written by `alignkd eval`; run the same evaluation again") from error
