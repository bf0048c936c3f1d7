"""Runs a generation of answers as one worker, and what it prints at the end."""

import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from alignkd.pipeline.config.generate_config import AnswersConfig
from alignkd.pipeline.console.outputs import claim_folder
from alignkd.pipeline.console.printing import format_count
from alignkd.pipeline.runs.dump_report import MAX_LISTED
from alignkd.pipeline.runs.worker import own_device, worker_control
from alignkd.storage.files.exclusive import TEMPORARY_PREFIX
from alignkd.teacher_dump.generate.folder import SHARDS
from alignkd.teacher_dump.generate.generate import generate_answers
from alignkd.teacher_dump.generate.job import GenerateResult
from alignkd.teacher_dump.operation.workers import Worker, worker_of
from alignkd.vlm.data.formats.paths import ANSWERS_FOLDER, GENERATION_FILE


@dataclass(frozen=True, kw_only=True)
class GenerateEnd:
    """How a worker's run ended.

    Attributes:
        worker: rank and count of the worker.
        result: what is written now.
        interrupted_by: the signal after which it started no other shard; 0 without a signal.
    """

    worker: Worker
    result: GenerateResult
    interrupted_by: int


def run_generate(config: AnswersConfig, worker: str | None = None) -> GenerateEnd:
    """Generate answers.

    Args:
        worker: `RANK/COUNT`; None takes it from the launcher's environment, or runs the only worker.

    Raises:
        DumpStopped: a signal made it abandon the current shard.
    """
    which, job = worker_of(os.environ, worker), config.job()
    reads = [place for data in job.data for place in (data.path, data.images) if place is not None]
    claim_folder("generate.output", job.generate.output, _is_ours, reads=reads, force=None)
    with worker_control("generate", which, unit="entry") as control:
        result = generate_answers(replace(job, teacher=own_device(job.teacher), control=control))
        return GenerateEnd(worker=which, result=result, interrupted_by=control.stops.received)


def unusable_lines(result: GenerateResult, output: Path) -> Iterator[str]:
    """The first few unusable samples, and how many more there are."""
    for index, sample_id, reason in result.unusable[:MAX_LISTED]:
        yield f"unusable: sample {sample_id!r} (index {index}): {reason}"
    if (rest := len(result.unusable) - MAX_LISTED) > 0:
        yield f"unusable: {rest} more, see {output / SHARDS}"


def result_lines(result: GenerateResult, output: Path) -> Iterator[str]:
    """What a worker did, what the folder holds now, and how the other phases take it."""
    written = result.shards_written
    done = f"wrote {format_count(written, 'shard')}" if written else "nothing left to do"
    if result.shards_left:
        done = f"wrote {format_count(written, 'shard')}, {result.shards_left} left"
    mean = f", {result.logprob / result.tokens:.3f} nats per token" if result.tokens else ""
    halved = f", {result.halved_batches} batches halved after running out of memory" if result.halved_batches else ""
    yield (
        f"{done}: {result.entries} entries of {format_count(result.num_samples, 'sample')} with "
        f"{format_count(result.answers, 'answer')} of the teacher ({result.finished} finished{mean}), "
        f"{len(result.unusable)} unusable{halved}, {result.seconds:.1f} s"
    )
    if not result.shards_left:
        images = "" if result.images is None else f", images: {result.images}"
        yield f"take the answers by `data: {{conversations: {output}{images}}}`"


def _is_ours(folder: Path) -> bool:
    """Whether a generation made the folder, perhaps another worker that has just begun."""
    made = {GENERATION_FILE, ANSWERS_FOLDER, SHARDS}
    names = [entry.name for entry in folder.iterdir()]
    return GENERATION_FILE in names or all(name in made or name.startswith(TEMPORARY_PREFIX) for name in names)
