"""Runs a generation of answers as one worker; makes the lines that it prints at the end."""

import shlex
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from alignkd.pipeline.config.sections.generate_config import AnswersConfig
from alignkd.pipeline.console.outputs import claim_folder
from alignkd.pipeline.console.printing import format_count
from alignkd.pipeline.runs.teacher.shards_report import listed_unusable
from alignkd.pipeline.runs.teacher.worker import WorkerEnd, own_device, run_as_worker
from alignkd.storage.files.exclusive import TEMPORARY_PREFIX
from alignkd.teacher_dump.generate.folder import SHARDS
from alignkd.teacher_dump.generate.generate import RETRY, generate_answers
from alignkd.teacher_dump.generate.job import GenerateResult
from alignkd.teacher_dump.operation.control import DumpControl
from alignkd.vlm.data.formats.paths import ANSWERS_FOLDER, GENERATION_FILE


def run_generate(
    config: AnswersConfig, worker: str | None = None, *, retry_unusable: bool = False
) -> WorkerEnd[GenerateResult]:
    """Generate answers.

    Args:
        worker: `RANK/COUNT`; None takes it from the launcher's environment, or runs the only worker.
        retry_unusable: also redo shards whose unusable samples can be read by now.

    Raises:
        DumpStopped: a signal made it abandon the current shard.
    """
    job = replace(config.job(), retry_unusable=retry_unusable)
    reads = [place for data in job.data for place in (data.path, data.images) if place is not None]
    claim_folder("generate.output", job.generate.output, _is_ours, reads=reads, force=None)

    def run(control: DumpControl) -> GenerateResult:
        return generate_answers(replace(job, teacher=own_device(job.teacher), control=control))

    return run_as_worker("generate", worker, unit="entry", run=run)


def unusable_lines(result: GenerateResult, output: Path) -> Iterator[str]:
    """The first few unusable samples, and how many more there are."""
    return listed_unusable(result.unusable, more=f"see {output / SHARDS}")


def result_lines(result: GenerateResult, output: Path, config: object = "CONFIG") -> Iterator[str]:
    """What a worker of the configuration `config` did, what the folder holds now, and how a dump takes it."""
    written = result.shards_written
    done = f"wrote {format_count(written, 'shard')}" if written else "nothing left to do"
    if result.shards_left:
        done = f"wrote {format_count(written, 'shard')}, {result.shards_left} left"
    mean = f", {result.logprob / result.tokens:.3f} nats per token" if result.tokens else ""
    retry = ""
    if result.retryable:
        command = RETRY.replace("CONFIG", shlex.quote(str(config)))
        retry = f" ({result.retryable} of them can be retried after their files are restored: `{command}`)"
    halved = f", {result.halved_batches} batches halved after running out of memory" if result.halved_batches else ""
    yield (
        f"{done}: {result.entries} entries of {format_count(result.num_samples, 'sample')} with "
        f"{format_count(result.answers, 'answer')} of the teacher ({result.finished} finished{mean}), "
        f"{len(result.unusable)} unusable{retry}{halved}, {result.seconds:.1f} s"
    )
    if not result.shards_left and not result.answers:
        yield "every question had an answer; set generate.answers to all to have them answered anew"
    elif not result.shards_left:
        images = "" if result.images is None else f", images: {result.images}"
        yield f"take the answers by `data: {{conversations: {output}{images}}}`"


def _is_ours(folder: Path) -> bool:
    """Whether a generation made the folder, perhaps another worker that has just begun."""
    made = {GENERATION_FILE, ANSWERS_FOLDER, SHARDS}
    names = [entry.name for entry in folder.iterdir()]
    return GENERATION_FILE in names or all(name in made or name.startswith(TEMPORARY_PREFIX) for name in names)
