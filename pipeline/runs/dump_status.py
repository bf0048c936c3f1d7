"""`alignkd dump --status STORE`: how far a dump is, from what its workers say and what is committed; loads no torch."""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from alignkd.pipeline.console import format_bytes
from alignkd.storage.files.location import as_location
from alignkd.storage.read.listing import ShardInfo, list_shards
from alignkd.teacher_dump.operation.status import WorkerStatus, read_workers


@dataclass(frozen=True, kw_only=True)
class DumpStatus:
    """A dump that runs, has ended, or died.

    Attributes:
        state: `complete` when every shard is committed, `running` while a worker is, else `stopped`.
        samples: of the data set; `samples_done` are written or listed as unusable, those in hand included.
        errors: unusable samples, committed.
        tokens: of the text, committed.
        bytes: of committed shards.
        rate: samples per second of all running workers.
        seconds_left: at this rate; None when nothing runs.
        workers: those that left a word; none when the dump is complete.
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
    """How far the dump into a store is.

    Raises:
        StoreError: no store, or one that cannot be read.
    """
    location = as_location(store)
    workers = tuple(read_workers(location))  # before the shards: what is committed in between is not counted twice
    shards = list_shards(location)
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
        workers=workers,
    )


def _samples_done(committed: list[ShardInfo], running: list[WorkerStatus]) -> int:
    """Committed ones, and those in the hands of workers whose shards are not committed yet."""
    finished = {shard.shard for shard in committed}
    return sum(shard.planned for shard in committed) + sum(
        worker.in_hand for worker in running if not finished.issuperset(worker.shards)
    )


def status_lines(status: DumpStatus) -> Iterator[str]:
    """For a terminal: all together, then a line per worker."""
    share = status.samples_done / status.samples
    left = f", {duration(status.seconds_left)} left" if status.state == "running" and status.seconds_left else ""
    rate = f", {status.rate:.2f} samples/s{left}" if status.state == "running" else ""
    yield f"{status.store}: {status.state}, {share:.1%}{rate}"
    yield (
        f"{status.samples_done:,} of {status.samples:,} samples, {status.shards_done:,} of {status.shards:,} shards, "
        f"{status.errors:,} unusable, {status.tokens:,} text tokens, {format_bytes(status.bytes)}"
    )
    if status.state == "stopped":
        yield "nobody is at work; run the same `alignkd dump` again to go on"
    if not status.workers:
        return
    rows = [_HEADER, *(_cells(worker) for worker in status.workers)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_HEADER))]
    for row in rows:
        yield "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)).rstrip()


_HEADER = ["worker", "state", "host", "pid", "shard", "done", "samples", "per s", "unusable", "tokens", "written",
           "halved", "heard of", "left", ""]  # fmt: skip


def _cells(worker: WorkerStatus) -> list[str]:
    left = (worker.total - worker.samples) / worker.rate if worker.rate > 0 and worker.state == "running" else None
    return [
        worker.worker,
        worker.state,
        worker.host,
        str(worker.pid),
        " ".join(map(str, worker.shards)) or "-",
        f"{worker.shards_written} shards",
        f"{worker.samples:,}",
        f"{worker.rate:.2f}",
        f"{worker.errors:,}",
        f"{worker.tokens:,}",
        format_bytes(worker.num_bytes),
        str(worker.halved),
        f"{max(0.0, time.time() - worker.heartbeat):.0f} s ago",
        "-" if left is None else duration(left),
        worker.message[:80],
    ]


def duration(seconds: float) -> str:
    """`seconds` as people say it: 42 s, 12 min, 3.4 h, 5.2 days."""
    for unit, size, least in (("days", 86400.0, 2.0), ("h", 3600.0, 1.0), ("min", 60.0, 2.0)):
        if seconds >= least * size:
            return f"{seconds / size:.0f} min" if unit == "min" else f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} s"
