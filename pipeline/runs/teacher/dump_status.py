"""`alignkd dump --status STORE`: progress of a dump, from the status of its workers and the commits; loads no torch."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from alignkd.pipeline.console.printing import format_bytes, format_count, format_duration
from alignkd.storage.files.location import as_location
from alignkd.storage.places import load_manifest
from alignkd.storage.read.listing import ShardInfo, list_shards
from alignkd.teacher_dump.operation.status import WorkerStatus, read_workers


@dataclass(frozen=True, kw_only=True)
class DumpStatus:
    """The state of a dump that runs, has ended or has crashed.

    Attributes:
        state: `complete` if every shard is committed, `running` if a worker runs, otherwise `stopped`.
        samples: number of samples of the data set.
        samples_done: samples that are written or listed as unusable, including those of the current shards.
        errors: unusable samples of committed shards.
        tokens: text tokens of committed shards.
        bytes: bytes of committed shards.
        rate: samples per second of all running workers together.
        seconds_left: remaining time at this rate; None if no worker runs.
        workers: workers with a status; empty if the dump is complete.
    """

    store: str
    state: Literal["complete", "running", "stopped"]
    shards: int
    shards_done: int
    samples: int
    samples_done: int
    records: int
    errors: int
    tokens: int
    bytes: int
    rate: float
    seconds_left: float | None
    workers: tuple[WorkerStatus, ...]


def dump_status(store: Path | str) -> DumpStatus:
    """Read the progress of the dump into a store.

    Raises:
        StoreError: no store, or an unreadable one.
    """
    location = as_location(store)
    load_manifest(location)  # the clearest message for what is no store
    # before the shards, so that a shard committed in between is not counted twice
    workers = read_workers(location)
    return status_of(location, workers, list_shards(location))


def status_of(location: Path | str, workers: Sequence[WorkerStatus], shards: Sequence[ShardInfo]) -> DumpStatus:
    """The progress that follows from the workers' status and from the shards of the plan, which were read later."""
    committed = [shard for shard in shards if shard.committed]
    running = [worker for worker in workers if worker.state == "running"]
    rate = sum(worker.rate for worker in running)
    samples = sum(shard.planned for shard in shards)
    done = _samples_done(committed, running)
    complete = len(committed) == len(shards)
    return DumpStatus(
        store=str(location),
        state="complete" if complete else "running" if running else "stopped",
        shards=len(shards),
        shards_done=len(committed),
        samples=samples,
        samples_done=min(done, samples),
        records=sum(shard.num_records for shard in committed),
        errors=sum(shard.num_quarantined for shard in committed),
        tokens=sum(shard.num_tokens for shard in committed),
        bytes=sum(shard.num_bytes for shard in committed),
        rate=rate,
        seconds_left=0.0 if complete else (samples - done) / rate if rate > 0 else None,
        workers=tuple(workers),
    )


def _samples_done(committed: list[ShardInfo], running: list[WorkerStatus]) -> int:
    """Samples of committed shards, and of current shards that are not committed yet."""
    finished = {shard.shard for shard in committed}
    return sum(shard.planned for shard in committed) + sum(
        worker.in_hand for worker in running if not finished.issuperset(worker.shards)
    )


def status_lines(status: DumpStatus) -> Iterator[str]:
    """The status for a terminal: a summary, then one line per worker."""
    share = status.samples_done / status.samples
    left = f", {format_duration(status.seconds_left)} left" if status.state == "running" and status.seconds_left else ""
    rate = f", {status.rate:.2f} samples/s{left}" if status.state == "running" else ""
    yield f"{status.store}: {status.state}, {share:.1%}{rate}"
    yield (
        f"{status.samples_done:,} of {status.samples:,} samples, {status.shards_done:,} of {status.shards:,} shards, "
        f"{status.errors:,} unusable, {status.tokens:,} text tokens, {format_bytes(status.bytes)}"
    )
    if status.state == "stopped":
        yield "no worker runs; run the same `alignkd dump` again to resume"
    yield from worker_lines(status.workers)


def worker_lines(workers: Sequence[WorkerStatus]) -> Iterator[str]:
    """A table of workers; nothing if there are none."""
    if not workers:
        return
    rows = [_HEADER, *(_cells(worker) for worker in workers)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_HEADER))]
    for row in rows:
        yield "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)).rstrip()


_HEADER = ["worker", "state", "host", "pid", "shard", "done", "samples", "per s", "unusable", "tokens", "written",
           "halved", "last seen", "left", ""]  # fmt: skip


def _cells(worker: WorkerStatus) -> list[str]:
    left = (worker.total - worker.samples) / worker.rate if worker.rate > 0 and worker.state == "running" else None
    return [
        worker.worker,
        worker.state,
        worker.host,
        str(worker.pid),
        " ".join(map(str, worker.shards)) or "-",
        format_count(worker.shards_written, "shard"),
        f"{worker.samples:,}",
        f"{worker.rate:.2f}",
        f"{worker.errors:,}",
        f"{worker.tokens:,}",
        format_bytes(worker.num_bytes),
        str(worker.halved),
        f"{max(0.0, time.time() - worker.heartbeat):.0f} s ago",
        "-" if left is None else format_duration(left),
        worker.message[:80],
    ]
