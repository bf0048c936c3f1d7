"""Control of a dump: which shards it writes, when it stops, and its published status."""

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sized
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Protocol

from alignkd.storage.errors import StoreError
from alignkd.teacher_dump.operation.status import HasSharedFolder, StatusPlace, WorkerStatus, status_place
from alignkd.teacher_dump.operation.stops import DumpStopped, DumpStopSignals
from alignkd.teacher_dump.operation.workers import Claims, Worker, shards_to_write
from alignkd.vlm.data.source import ReadProgress
from alignkd.vlm.errors import one_line

RATE_SECONDS = 30.0
Progress = Callable[[WorkerStatus], None]


class Output(HasSharedFolder, Protocol):
    """What workers write shard by shard: a store, or the folder of a teacher's answers."""

    def pending_shards(self) -> list[int]:
        """Shards of the plan that are not committed yet, ascending."""

    def is_pending(self, shard: int) -> bool:
        """Whether one shard is to be written, by the present state of the output."""

    def planned_samples(self, shard: int) -> Sized:
        """The samples of a shard."""


class DumpControl:
    """Control of one worker's run. Defaults: one worker, no signal handling, no status file.

    Args:
        worker: identity of this worker.
        stops: signal handling; None leaves signals at their defaults.
        progress: called with the counters after every batch.
        notice: called with one-line messages for the user.
        reading: called with the bytes read and the bytes in all while data files are read through.
        visible: whether the output's `.status` folder shows this worker and its claimed shards.

    Attributes:
        status: the counters.
        began: time.monotonic() when the first shard was requested, after loading.
    """

    def __init__(
        self,
        worker: Worker | None = None,
        *,
        stops: DumpStopSignals | None = None,
        progress: Progress = lambda status: None,
        visible: bool = False,
        notice: Callable[[str], object] = lambda text: None,
        reading: ReadProgress | None = None,
    ) -> None:
        self.worker = worker or Worker()
        self.stops = stops or DumpStopSignals()
        self.status = WorkerStatus(worker=str(self.worker))
        self._progress, self._visible = progress, visible
        self._notice = notice
        self.reading = reading
        self.began = time.monotonic()
        self._has_begun = False
        self._rate = _Rate()
        self._held: dict[int, int] = {}
        self._place: _PublishedStatus | _LocalClaims = _LocalClaims()

    @contextmanager
    def over(self, output: Output) -> Iterator[Iterable[int]]:
        """Yield the shards to write; each is claimed when it is reached, until it is committed or the block ends.

        Where `waits_for_more`, the shards that have been assigned since are found by iterating once more.
        """
        pending = output.pending_shards()
        self._update(total=sum(len(output.planned_samples(shard)) for shard in pending if self.worker.owns(shard)))
        if self._visible and pending:
            self._place = _PublishedStatus(status_place(output, str(self.worker)), self)
        elif self._visible:
            clear_status(output)
        ended: WorkerStatus | None = None
        try:
            yield _Shards(lambda: self._shards(output))
            ended = replace(self.status, state="stopped" if self.stops.finishing else "finished")
        except (DumpStopped, KeyboardInterrupt) as stop:
            ended = replace(self.status, state="stopped", message=str(stop))
            raise
        except BaseException as error:
            ended = replace(self.status, state="failed", message=one_line(error)[:500])
            raise
        finally:
            self.stops.announce = None
            self._place.close(ended or self.status, lambda: not output.pending_shards())

    def check(self) -> None:
        """Call between batches, and about every second while waiting.

        Raises:
            DumpStopped: the shards in progress must be abandoned.
        """
        self.stops.check()

    def advance(self, *, written: int = 0, errors: int = 0, tokens: int = 0, halved: int = 0) -> None:
        """Count a batch: samples written, unusable samples, embedded tokens, halvings."""
        now = self.status
        samples = now.samples + written + errors
        self._update(
            samples=samples,
            in_hand=now.in_hand + written + errors,
            errors=now.errors + errors,
            tokens=now.tokens + tokens,
            halved=now.halved + halved,
            rate=self._rate.add(samples),
        )
        self._progress(self.status)

    def show(self, status: WorkerStatus) -> None:
        """Show counters that are counted elsewhere."""
        self.status = status
        self._progress(status)

    def notice(self, text: str) -> None:
        """Show one line to the user."""
        self._notice(text)

    def committed(self, shard: int, *, samples: int, num_bytes: int) -> None:
        """Count a committed shard of so many samples, unusable ones included, and release its claim."""
        now = self.status
        self._held.pop(shard, None)
        self._place.release(shard)
        self._update(
            shards=tuple(self._held),
            shards_written=now.shards_written + 1,
            in_hand=max(0, now.in_hand - samples),
            num_bytes=now.num_bytes + num_bytes,
        )
        if not self._held:
            self.stops.announce = None

    def chosen(self, claims: Claims, output: Output) -> Iterator[int]:
        """The shards for this worker to write, each claimed; a subclass may take them from elsewhere."""
        is_committed = lambda shard: not output.is_pending(shard)  # noqa: E731
        return shards_to_write(self.worker, claims, output.pending_shards, is_committed)

    def waits_for_more(self) -> bool:
        """Called when all shards of `over` are written: whether others may come; waits a short time for them."""
        return False

    def _shards(self, output: Output) -> Iterator[int]:
        if not self._has_begun:
            self.began, self._has_begun = time.monotonic(), True
            self._rate = _Rate()
        for shard in self.chosen(self._place, output):
            if self.stops.finishing:
                self._place.release(shard)
                return
            planned = len(output.planned_samples(shard))
            self._held[shard] = planned
            added = 0 if self.worker.owns(shard) else planned
            self._update(shards=tuple(self._held), total=self.status.total + added)
            self.stops.announce = self._finishing_line
            yield shard
            if self.stops.finishing:
                return

    def _finishing_line(self) -> str:
        """Progress of the shard being written; the next one may be claimed, but will not be started."""
        if not self._held:  # the signal arrived between the commit of a shard and the end of `committed`
            return "alignkd: the shard is written, no other one is started; Ctrl-C again ends at once"
        shard, planned = next(iter(self._held.items()))
        left = (planned - self.status.in_hand) / self.status.rate if self.status.rate > 0 else None
        about = "" if left is None else f", about {max(0.0, left):.0f} s"
        return f"alignkd: finishing shard {shard}{about}; Ctrl-C again abandons it at once"

    def _update(self, **changes: object) -> None:
        self.status = replace(self.status, heartbeat=time.time(), **changes)  # type: ignore[arg-type]


class _Shards:
    """Shards that may be iterated over several times."""

    def __init__(self, begin: Callable[[], Iterator[int]]) -> None:
        self._begin = begin

    def __iter__(self) -> Iterator[int]:
        return self._begin()


def clear_status(output: HasSharedFolder) -> None:
    """All shards are committed: remove the status files of workers that died after their last shard."""
    with suppress(OSError, StoreError):
        status_place(output, "").close(complete=True)


class _LocalClaims:
    """Claims of a single worker, without a status file."""

    def __init__(self) -> None:
        self._shards: set[int] = set()

    def take(self, shard: int) -> bool:
        taken = shard not in self._shards
        self._shards.add(shard)
        return taken

    def release(self, shard: int) -> None:
        self._shards.discard(shard)

    def close(self, status: WorkerStatus, is_complete: Callable[[], bool]) -> None:
        pass


class _PublishedStatus:
    """A thread that publishes the worker's counters. Errors in publishing never fail a dump."""

    def __init__(self, place: StatusPlace, control: DumpControl) -> None:
        self._place, self._control = place, control
        self._stop = threading.Event()
        control.status = replace(control.status, interval=place.interval)
        self._publish(control.status)
        self._thread = threading.Thread(target=self._run, daemon=True, name="status")
        self._thread.start()

    def take(self, shard: int) -> bool:
        return self._place.take(shard)

    def release(self, shard: int) -> None:
        self._place.release(shard)

    def close(self, status: WorkerStatus, is_complete: Callable[[], bool]) -> None:
        self._stop.set()
        self._thread.join()
        self._publish(replace(status, heartbeat=time.time(), shards=()))
        with suppress(OSError, StoreError):
            self._place.close(complete=is_complete())

    def _run(self) -> None:
        while not self._stop.wait(self._place.interval):
            self._publish(replace(self._control.status, heartbeat=time.time()))

    def _publish(self, status: WorkerStatus) -> None:
        with suppress(OSError, StoreError):
            self._place.write(status)


class _Rate:
    """Samples per second over the last half minute."""

    def __init__(self) -> None:
        self._seen: deque[tuple[float, int]] = deque([(time.monotonic(), 0)])

    def add(self, samples: int) -> float:
        """The rate after `samples` samples."""
        now = time.monotonic()
        self._seen.append((now, samples))
        while len(self._seen) > 2 and now - self._seen[0][0] > RATE_SECONDS:
            self._seen.popleft()
        start, before = self._seen[0]
        return (samples - before) / max(now - start, 1e-9)
