"""`alignkd generate --status OUTPUT`: progress of a generation, from the status of its workers and the reports."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from alignkd.pipeline.console.printing import format_bytes, format_duration
from alignkd.pipeline.runs.teacher.dump_status import worker_lines
from alignkd.teacher_dump.generate.folder import AnswerFolder
from alignkd.teacher_dump.operation.status import WorkerStatus, read_workers


@dataclass(frozen=True, kw_only=True)
class GenerateStatus:
    """The state of a generation that runs, has ended or has crashed.

    Attributes:
        state: `complete` if every shard is written, `running` if a worker runs, otherwise `stopped`.
        planned: entries of the plan, several for each sample if so configured.
        done: entries that are written or unusable, including those of the current shards.
        entries, answers, tokens, unusable, bytes: of the shards that are written.
        rate: entries per second of all running workers together.
        seconds_left: remaining time at this rate; None if no worker runs.
        workers: workers with a status; empty if all is written.
    """

    output: str
    state: Literal["complete", "running", "stopped"]
    shards: int
    shards_done: int
    planned: int
    done: int
    entries: int
    answers: int
    tokens: int
    unusable: int
    bytes: int
    rate: float
    seconds_left: float | None
    workers: tuple[WorkerStatus, ...]


def generate_status(output: Path) -> GenerateStatus:
    """Read the progress of a generation.

    Raises:
        InputError: no folder of answers, or an unreadable one.
    """
    folder = AnswerFolder.read(output)
    workers = tuple(read_workers(output))  # before the reports, so that no shard is counted twice
    reports = list(folder.reports())
    running = [worker for worker in workers if worker.state == "running"]
    written = {report.shard for report in reports}
    planned = sum(len(folder.planned_samples(shard)) for shard in range(folder.num_shards))
    done = sum(report.entries + len(report.unusable) for report in reports)
    done += sum(worker.in_hand for worker in running if not written.issuperset(worker.shards))
    rate = sum(worker.rate for worker in running)
    complete = len(reports) == folder.num_shards
    return GenerateStatus(
        output=str(output),
        state="complete" if complete else "running" if running else "stopped",
        shards=folder.num_shards,
        shards_done=len(reports),
        planned=planned,
        done=min(done, planned),
        entries=sum(report.entries for report in reports),
        answers=sum(report.answers for report in reports),
        tokens=sum(report.tokens for report in reports),
        unusable=sum(len(report.unusable) for report in reports),
        bytes=sum(report.bytes for report in reports),
        rate=rate,
        seconds_left=0.0 if complete else (planned - done) / rate if rate > 0 else None,
        workers=workers,
    )


def status_lines(status: GenerateStatus) -> Iterator[str]:
    """The status for a terminal: a summary, then one line per worker."""
    left = f", {format_duration(status.seconds_left)} left" if status.state == "running" and status.seconds_left else ""
    rate = f", {status.rate:.2f} entries/s{left}" if status.state == "running" else ""
    yield f"{status.output}: {status.state}, {status.done / status.planned:.1%}{rate}"
    yield (
        f"{status.done:,} of {status.planned:,} entries, {status.shards_done:,} of {status.shards:,} shards, "
        f"{status.answers:,} answers of {status.tokens:,} tokens, {status.unusable:,} unusable, "
        f"{format_bytes(status.bytes)}"
    )
    if status.state == "stopped":
        yield "no worker runs; run the same `alignkd generate` again to resume"
    yield from worker_lines(status.workers)
