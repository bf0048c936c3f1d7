"""The state of a dump that runs, for a page that asks for it again and again: each commit record is read once."""

import time
from collections import Counter
from collections.abc import Sequence, Set
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from alignkd.pipeline.browse.index.changes import Mark, mark_of
from alignkd.pipeline.runs.teacher.dump_status import DumpStatus, status_of
from alignkd.storage.files.location import as_location
from alignkd.storage.places import open_files
from alignkd.storage.read.listing import ShardInfo, shard_info
from alignkd.storage.schema.commit_record import COMMITS, commit_name, load_heads, manifest_and_shards
from alignkd.storage.tools.stats import general_reason
from alignkd.teacher_dump.operation.status import WorkerStatus, read_workers

MAX_UNUSABLE = 200
FAILED = ("failed", "dead", "silent")


@dataclass(frozen=True, kw_only=True)
class WorkerState:
    """One worker of a dump.

    Attributes:
        worker: `rank/count`.
        host, pid: host and process.
        state: `running`, `finished`, `stopped`, `failed`, `dead` or `silent` (`WorkerStatus`).
        failed: whether it ended, or fell silent, without being told to.
        shards: claimed shards.
        shards_written: shards it committed.
        samples, total: samples done in this run, and of all shards that it has claimed or has to do.
        errors: unusable samples.
        tokens: embedded tokens (text and vision).
        bytes: bytes of the shards it committed.
        halved: batches that did not fit the device and were halved.
        rate: recent samples per second; 0 if it does not run.
        seconds_running: from its start to its last sign of life.
        seconds_since: since its last sign of life, by the clock of this machine.
        seconds_left: of its samples at its rate; None if it does not run.
        message: why it failed.
    """

    worker: str
    host: str
    pid: int
    state: str
    failed: bool
    shards: tuple[int, ...]
    shards_written: int
    samples: int
    total: int
    errors: int
    tokens: int
    bytes: int
    halved: int
    rate: float
    seconds_running: float
    seconds_since: float
    seconds_left: float | None
    message: str


@dataclass(frozen=True, kw_only=True)
class UnusableSample:
    """A sample that the dump could not use.

    Attributes:
        number: counts the unusable samples in the order in which they became known, from 0.
        shard: its shard.
        index: its place in the data set.
    """

    number: int
    shard: int
    index: int
    id: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class DumpState:
    """The state of a dump.

    Attributes:
        state: `complete` if every shard is committed, `running` if a worker runs, otherwise `stopped`.
        shards, shards_done: shards of the plan, and committed ones.
        samples, samples_done: samples of the plan, and those that are written or unusable, current shards included.
        records, tokens, bytes: of committed shards.
        errors: unusable samples of committed shards.
        rate: samples per second of all running workers.
        seconds_left: remaining time at this rate; None if no worker runs.
        workers: workers with a status; empty once the dump is complete.
        unusable: the last 200 unusable samples, the newest first.
        reasons: (reason without what belongs to one sample, count), the most frequent first.
        done: whether each shard of the plan is committed, as text of 0 and 1.
    """

    store: str
    state: Literal["complete", "running", "stopped"]
    shards: int
    shards_done: int
    samples: int
    samples_done: int
    records: int
    tokens: int
    bytes: int
    errors: int
    rate: float
    seconds_left: float | None
    workers: tuple[WorkerState, ...]
    unusable: tuple[UnusableSample, ...]
    reasons: tuple[tuple[str, int], ...]
    done: str

    def as_json(self) -> dict[str, Any]:
        """The state as values of JSON."""
        return asdict(self)


class DumpWatch:
    """Reads the state of a dump; writes nothing. One thread at a time."""

    def __init__(self, store: Path | str) -> None:
        self.location = as_location(store)
        self._files = open_files(self.location)
        self._manifest = ""
        self._infos: dict[int, ShardInfo] = {}
        # of a store in a folder: the commit record of each of these shards
        self._marks: dict[int, Mark | None] = {}
        self._folder_mark: Mark | None = None
        self._arrived: list[UnusableSample] = []
        self._reasons: Counter[str] = Counter()

    def state(self) -> DumpState:
        """The present state.

        Raises:
            StoreError: no store, or an unreadable one.
        """
        # before the shards, so that a shard committed in between is not counted twice
        workers = read_workers(self.location)
        shards = self._shards()
        status = status_of(self.location, workers, shards)
        return _state(status, self._arrived, self._reasons, "".join("01"[shard.committed] for shard in shards))

    def _shards(self) -> list[ShardInfo]:
        """Every shard of the plan; only commit records that are new are read."""
        manifest, committed = manifest_and_shards(self._files)
        if manifest.manifest_hash() != self._manifest:  # another store at the same place
            self._manifest = manifest.manifest_hash()
            self._forget(set(self._infos))
        self._forget((self._infos.keys() - set(committed)) | self._done_again())
        new = [shard for shard in committed if shard < manifest.num_shards and shard not in self._infos]
        self._marks |= {shard: self._mark(shard) for shard in new}
        for head, _ in load_heads(self._files, new, manifest.shard_hash, whole=False):
            self._infos[head.shard] = shard_info(head, manifest.planned_size(head.shard))
            first = self._arrived[-1].number + 1 if self._arrived else 0
            self._arrived += [
                UnusableSample(number=number, shard=head.shard, index=one.index, id=one.id, reason=one.reason)
                for number, one in enumerate(head.quarantined, first)
            ]
            self._reasons.update(general_reason(one.reason) for one in head.quarantined)
        return [
            self._infos.get(shard) or ShardInfo(shard=shard, committed=False, planned=manifest.planned_size(shard))
            for shard in range(manifest.num_shards)
        ]

    def _done_again(self) -> set[int]:
        """Shards whose commit records were replaced; not known of a remote store."""
        if not isinstance(self.location, Path) or self._folder_mark == (now := mark_of(self.location / COMMITS)):
            return set()
        self._folder_mark = now
        return {shard for shard in self._infos if self._mark(shard) != self._marks[shard]}

    def _mark(self, shard: int) -> Mark | None:
        return mark_of(self.location / commit_name(shard)) if isinstance(self.location, Path) else None

    def _forget(self, shards: Set[int]) -> None:
        if shards:
            self._infos = {shard: info for shard, info in self._infos.items() if shard not in shards}
            self._arrived = [sample for sample in self._arrived if sample.shard not in shards]
            self._reasons = Counter(general_reason(sample.reason) for sample in self._arrived)


def dump_state(store: Path | str) -> DumpState:
    """The state of a dump, read once; a `DumpWatch` reads less from its second time on.

    Raises:
        StoreError: no store, or an unreadable one.
    """
    return DumpWatch(store).state()


def _state(status: DumpStatus, arrived: Sequence[UnusableSample], reasons: Counter[str], done: str) -> DumpState:
    return DumpState(
        store=status.store,
        state=status.state,
        shards=status.shards,
        shards_done=status.shards_done,
        samples=status.samples,
        samples_done=status.samples_done,
        records=status.records,
        tokens=status.tokens,
        bytes=status.bytes,
        errors=status.errors,
        rate=status.rate,
        seconds_left=status.seconds_left,
        workers=tuple(_worker(worker) for worker in status.workers),
        unusable=tuple(reversed(arrived[-MAX_UNUSABLE:])),
        reasons=tuple(reasons.most_common()),
        done=done,
    )


def _worker(worker: WorkerStatus) -> WorkerState:
    running = worker.state == "running" and worker.rate > 0
    return WorkerState(
        worker=worker.worker,
        host=worker.host,
        pid=worker.pid,
        state=worker.state,
        failed=worker.state in FAILED,
        shards=worker.shards,
        shards_written=worker.shards_written,
        samples=worker.samples,
        total=worker.total,
        errors=worker.errors,
        tokens=worker.tokens,
        bytes=worker.num_bytes,
        halved=worker.halved,
        rate=worker.rate if worker.state == "running" else 0.0,
        seconds_running=max(0.0, worker.heartbeat - worker.started),
        seconds_since=max(0.0, time.time() - worker.heartbeat),
        seconds_left=max(0, worker.total - worker.samples) / worker.rate if running else None,
        message=worker.message,
    )
