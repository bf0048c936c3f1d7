"""The status that each worker of a dump publishes: a small file in `STORE/.status`, replaced every second.

    .status/<worker>.json    counters and a heartbeat; in a bucket replaced every 20 seconds
    .status/<worker>.lock    locked while the worker lives; not in a bucket
    .status/<shard>.claim    locked while a worker writes the shard; not in a bucket

Readers of a store ignore this folder. It may be deleted while no worker writes, and is removed when a dump is complete.
"""

import json
import os
import re
import socket
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, Protocol

from alignkd.storage.errors import StoreError
from alignkd.storage.files.exclusive import Lock, locked_if_free
from alignkd.storage.files.local import LocalFiles
from alignkd.storage.files.source import StoreFiles
from alignkd.storage.places import open_files
from alignkd.storage.write.place import SharedFiles

FOLDER = ".status"
SECONDS_BETWEEN = 1.0
SECONDS_BETWEEN_IN_BUCKET = 20.0
# in units of the worker's interval, and a minimum in seconds, because clocks of two machines differ
MISSED_HEARTBEATS = 4
PATIENCE_SECONDS = 30.0
MAX_BYTES = 1 << 16

State = Literal["running", "finished", "stopped", "failed", "silent", "dead"]


@dataclass(frozen=True, kw_only=True)
class WorkerStatus:
    """The counters of one worker.

    Attributes:
        worker: `rank/count`.
        host, pid: host and process.
        state: `running`, `finished`, `stopped` or `failed` as published; a reader adds `dead` (its lock is free, but it
            published no end) and `silent` (no heartbeat for long, while its lock is held or cannot be checked).
        started, heartbeat: seconds since 1970, by its clock.
        interval: seconds between two heartbeats.
        shards: claimed shards.
        shards_written: shards it committed.
        samples: samples done in this run, written and unusable.
        in_hand: number of these in shards that are not committed yet.
        total: samples of the shards that it claimed, and of its own remaining shards.
        errors: unusable samples.
        tokens: embedded tokens (text + vision).
        num_bytes: bytes of the shards it committed.
        halved: batches that did not fit the device and were halved.
        rate: recent samples per second.
        message: why it failed.
    """

    worker: str
    host: str = field(default_factory=socket.gethostname)
    pid: int = field(default_factory=os.getpid)
    state: State = "running"
    started: float = field(default_factory=time.time)
    heartbeat: float = field(default_factory=time.time)
    interval: float = SECONDS_BETWEEN
    shards: tuple[int, ...] = ()
    shards_written: int = 0
    samples: int = 0
    in_hand: int = 0
    total: int = 0
    errors: int = 0
    tokens: int = 0
    num_bytes: int = 0
    halved: int = 0
    rate: float = 0.0
    message: str = ""

    def to_json(self) -> bytes:
        """The status as one line of JSON."""
        return json.dumps(asdict(self)).encode() + b"\n"

    @classmethod
    def of_json(cls, data: bytes) -> "WorkerStatus | None":
        """The inverse of `to_json`; None for other content, because other programs may write to the folder."""
        try:
            values = json.loads(data)
            known: dict[str, Any] = {name: type(value)(values[name]) for name, value in asdict(_EXAMPLE).items()}
            return cls(**{**known, "shards": tuple(map(int, known["shards"]))})
        except (ValueError, TypeError, KeyError):
            return None


_EXAMPLE = WorkerStatus(worker="0/1")


class StatusPlace(Protocol):
    """The place of one worker's status file and its claims of shards."""

    @property
    def interval(self) -> float:
        """Seconds between two heartbeats."""

    def write(self, status: WorkerStatus) -> None:
        """Replace the file.

        Raises:
            OSError, StoreError: the file cannot be written.
        """

    def take(self, shard: int) -> bool:
        """See `alignkd.teacher_dump.operation.workers.Claims`."""

    def release(self, shard: int) -> None:
        """See `alignkd.teacher_dump.operation.workers.Claims`."""

    def close(self, *, complete: bool) -> None:
        """Release all claims.

        Args:
            complete: whether the dump is complete, so that all status files are removed.
        """


class HasSharedFolder(Protocol):
    """An output that several workers write."""

    def shared_folder(self, name: str) -> Path | SharedFiles:
        """A folder of the output for files that are not part of it; a Path where files can be locked."""


def status_place(output: HasSharedFolder, worker: str) -> StatusPlace:
    """The place for a worker of an output that is being written."""
    name = re.sub(r"[^A-Za-z0-9.-]", "-", f"worker-{worker}-{socket.gethostname()}-{os.getpid()}")
    shared = output.shared_folder(FOLDER)
    return FolderPlace(shared, name) if isinstance(shared, Path) else BucketPlace(shared, name)


def is_claimed(folder: Path, shard: int) -> bool:
    """Whether a living process holds the claim of a shard; `folder` is the shared folder of the status files."""
    return not _is_free(folder / _claim(shard))


class FolderPlace:
    """Files and locks; the kernel drops the locks of a process that dies."""

    interval = SECONDS_BETWEEN

    def __init__(self, folder: Path, name: str) -> None:
        self._folder, self._name = folder, name
        self._held: dict[int, Lock] = {}
        self._lock = self._locked(f"{name}.lock")

    def write(self, status: WorkerStatus) -> None:
        target = self._folder / f"{self._name}.json"
        draft = target.with_suffix(".draft")
        draft.write_bytes(status.to_json())
        draft.replace(target)

    def take(self, shard: int) -> bool:
        if shard in self._held:
            return False
        if (lock := self._locked(_claim(shard))) is None:
            return False
        self._held[shard] = lock
        return True

    def release(self, shard: int) -> None:
        if (lock := self._held.pop(shard, None)) is not None:
            (self._folder / _claim(shard)).unlink(
                missing_ok=True
            )  # under the lock: there is no other claim of this name
            lock.release()

    def close(self, *, complete: bool) -> None:
        for shard in list(self._held):
            self.release(shard)
        if complete:
            self._remove_dead()
            (self._folder / f"{self._name}.json").unlink(missing_ok=True)
        (self._folder / f"{self._name}.lock").unlink(missing_ok=True)
        if self._lock is not None:
            self._lock.release()
        if complete:
            with suppress(OSError):  # others are still there
                self._folder.rmdir()

    def _locked(self, name: str) -> Lock | None:
        self._folder.mkdir(exist_ok=True)
        (self._folder / name).touch()
        return Lock.take(self._folder / name)

    def _remove_dead(self) -> None:
        for path in [*self._folder.glob("*.lock"), *self._folder.glob("*.claim")]:
            with locked_if_free(path) as lock:
                if lock is not None:
                    for left in (path.with_suffix(".json"), path.with_suffix(".draft"), path):
                        left.unlink(missing_ok=True)
        for path in self._folder.glob("*.json"):  # workers that ended normally have no lock
            if not path.with_suffix(".lock").exists():
                path.unlink(missing_ok=True)


class BucketPlace:
    """Objects, which cannot be locked: the first worker to publish a claim owns the shard until its heartbeat expires.

    If two workers claim a shard within the same second, each sees the other; the one whose name sorts first keeps it.
    """

    interval = SECONDS_BETWEEN_IN_BUCKET

    def __init__(self, shared: SharedFiles, name: str) -> None:
        self._shared, self._name = shared, name
        self._status: WorkerStatus | None = None
        self._shards: set[int] = set()

    def write(self, status: WorkerStatus) -> None:
        self._status = status
        self._shared.put(f"{self._name}.json", status.to_json())

    def take(self, shard: int) -> bool:
        if shard in self._shards or self._others(shard):
            return False
        self._shards.add(shard)
        self._publish()
        if any(name < self._name for name in self._others(shard)):
            self.release(shard)
            return False
        return True

    def release(self, shard: int) -> None:
        self._shards.discard(shard)

    def close(self, *, complete: bool) -> None:
        self._shards.clear()
        if complete:
            names = [name for name in self._shared.names() if name.startswith("worker-")]
            self._shared.delete([name for name in names if name == f"{self._name}.json" or not self._alive(name)])

    def _others(self, shard: int) -> list[str]:
        """Names of living workers that hold the shard."""
        names = [name for name in self._shared.names() if name != f"{self._name}.json"]
        return [name for name in names if self._alive(name, shard)]

    def _alive(self, name: str, shard: int | None = None) -> bool:
        if (data := self._shared.get(name, MAX_BYTES)) is None or (status := WorkerStatus.of_json(data)) is None:
            return False
        return status.state == "running" and not is_old(status) and (shard is None or shard in status.shards)

    def _publish(self) -> None:
        status = self._status or WorkerStatus(worker="0/1", interval=self.interval)
        self.write(replace(status, shards=tuple(sorted(self._shards)), heartbeat=time.time()))


def read_workers(location: Path | str) -> list[WorkerStatus]:
    """The workers of a store in the order of their names, each with its current state.

    Raises:
        StoreError: the folder cannot be listed or read.
    """
    return list(_workers(open_files(location)))


def is_old(status: WorkerStatus) -> bool:
    """Whether the last heartbeat has expired."""
    return time.time() - status.heartbeat > max(PATIENCE_SECONDS, MISSED_HEARTBEATS * status.interval)


def _workers(files: StoreFiles) -> Iterator[WorkerStatus]:
    folder = files.root if isinstance(files, LocalFiles) else None
    for name in sorted(files.names(FOLDER)):
        if not name.endswith(".json"):
            continue
        with suppress(StoreError):  # it was removed after it was listed
            status = WorkerStatus.of_json(files.read(f"{FOLDER}/{name}", MAX_BYTES))
            if status is not None:
                lock = None if folder is None else folder / FOLDER / f"{name.removesuffix('.json')}.lock"
                yield replace(status, state=_state(status, lock))


def _state(status: WorkerStatus, lock: Path | None) -> State:
    if status.state != "running":
        return status.state
    if lock is not None and status.host == socket.gethostname() and _is_free(lock):
        return "dead"
    return "silent" if is_old(status) else "running"


def _is_free(path: Path) -> bool:
    if not path.exists():
        return True
    with locked_if_free(path) as lock:
        return lock is not None


def _claim(shard: int) -> str:
    return f"{shard:08d}.claim"
