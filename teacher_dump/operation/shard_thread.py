"""A thread that appends records, lists unusable samples and commits shards while the teacher runs the next batch.

Samples arrive in any order within a window and are appended in the order of the plan. The queue is bounded: if the disk
is slower than the teacher, the teacher waits.
"""

import queue
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Self

from alignkd.storage.errors import RecordError
from alignkd.storage.schema.commit_record import CommitRecord
from alignkd.storage.write.shard import ShardWriter
from alignkd.teacher_dump.operation.retry import with_advice
from alignkd.teacher_dump.preparation import DoesNotFitError, Prepared, Unusable
from alignkd.teacher_dump.settings.store import StoreConfig
from alignkd.teacher_dump.targets.capture import Captured
from alignkd.teacher_dump.targets.records import make_record
from alignkd.vlm.data.images import MissingImageError
from alignkd.vlm.errors import ImageError, InputError, SampleError

# reasons that a retry may remove
RETRYABLE = (MissingImageError, ImageError, DoesNotFitError)
QUEUE_BATCHES = 4
TICK_SECONDS = 0.5
# time for a running commit when the run is stopped
PATIENCE_SECONDS = 2.0


@dataclass(frozen=True, kw_only=True)
class Finished:
    """A sample with the teacher's targets."""

    prepared: Prepared
    captured: Captured

    @property
    def place(self) -> int:
        """Position in the shard's plan."""
        return self.prepared.place


Outcome = Finished | Unusable


@dataclass(frozen=True, kw_only=True)
class Done:
    """Progress of the thread: samples written, unusable samples, embedded tokens, shards committed."""

    written: int = 0
    errors: int = 0
    tokens: int = 0
    commits: tuple[CommitRecord, ...] = ()


class _Abandoned(Exception):  # noqa: N818 - not an error: the run ends
    pass


class ShardThread:
    """A context manager; if an exception leaves it, everything uncommitted is abandoned.

    Args:
        config: section `store`: codecs, and what to do about unusable samples.
        where: the data file of the sample with an index, for messages.
        waiting: called with the progress since the last call, in each method below and about every `TICK_SECONDS`
            while a method waits; in the caller's thread. May raise.
    """

    def __init__(self, config: StoreConfig, where: Callable[[int], object], waiting: Callable[[Done], object]) -> None:
        self._config, self._where, self._waiting = config, where, waiting
        self._queue: queue.Queue[Callable[[], object]] = queue.Queue(QUEUE_BATCHES)
        self._thread = threading.Thread(target=self._run, name="shards", daemon=True)
        self._lock, self._done = threading.Lock(), Done()
        self._error: BaseException | None = None
        self._is_abandoned = threading.Event()
        self._is_over = False
        self._sinks: deque[ShardWriter] = deque()
        self._early: dict[int, Outcome] = {}
        self._next_place = self._num_errors = 0

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._is_abandoned.set()
        self._thread.join(PATIENCE_SECONDS)
        # a longer commit ends with the process; the next run removes its temporary files
        if not self._thread.is_alive():
            self._leave_all()

    def begin(self, sink: ShardWriter) -> None:
        """Start a shard for later outcomes; this object closes it, or abandons it."""
        self._sinks.append(sink)
        self._put(self._begin)

    def put(self, outcomes: list[Outcome]) -> None:
        """Add samples of the shard started last, in any order."""
        self._put(lambda: self._take(outcomes))

    def commit(self) -> None:
        """Commit the shard; all its samples must have been added."""
        self._put(self._commit)

    def finish(self) -> None:
        """Wait until all shards are committed."""
        self._put(self._end)
        while self._thread.is_alive():
            self._thread.join(TICK_SECONDS)
            self.tick()
        self.tick()

    def _put(self, work: Callable[[], object]) -> None:
        while True:
            self.tick()
            try:
                self._queue.put(work, timeout=TICK_SECONDS)
                return
            except queue.Full:
                continue

    def tick(self) -> None:
        """Report progress and raise the error that ended the thread; call it while there is nothing to add."""
        with self._lock:
            done, self._done = self._done, Done()
        self._waiting(done)
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        try:
            while not self._is_over:
                self._check()
                try:
                    work = self._queue.get(timeout=TICK_SECONDS)
                except queue.Empty:
                    continue
                work()
        except _Abandoned:
            pass
        except BaseException as error:
            self._error = error
        finally:
            self._leave_all()

    def _leave_all(self) -> None:
        while self._sinks:
            self._sinks.popleft().__exit__(None, None, None)

    def _check(self) -> None:
        if self._is_abandoned.is_set():
            raise _Abandoned

    def _begin(self) -> None:
        self._next_place = 0

    def _take(self, outcomes: list[Outcome]) -> None:
        for outcome in outcomes:
            if isinstance(outcome, Finished):
                outcome.captured.arrive()  # samples may wait long for their turn, so free the device memory now
            self._early[outcome.place] = outcome
        while self._next_place in self._early:
            self._check()
            outcome = self._early.pop(self._next_place)
            self._next_place += 1
            try:
                self._append(outcome)
            except (SampleError, RecordError) as error:
                self._quarantine(outcome, error)

    def _append(self, outcome: Outcome) -> None:
        if isinstance(outcome, Unusable):
            raise outcome.reason
        self._sinks[0].append(make_record(outcome.prepared, outcome.captured, self._config))
        self._count(written=1, tokens=outcome.prepared.length)

    def _quarantine(self, outcome: Outcome, error: Exception) -> None:
        """List an unusable sample in the store, or stop the run if so configured."""
        sample = outcome.sample if isinstance(outcome, Unusable) else outcome.prepared.sample
        reason = with_advice(str(error)) if isinstance(error, RETRYABLE) else str(error)
        where = f"{self._where(sample.index)}: sample {sample.id!r} (index {sample.index}): {error}"
        if self._config.on_error == "stop":
            raise InputError(f"{where} (store.on_error is 'stop')") from error
        self._num_errors += 1
        self._count(errors=1)
        if (limit := self._config.max_errors) is not None and self._num_errors > limit:
            raise InputError(
                f"{where}; {self._num_errors} unusable samples, store.max_errors is {limit}; repair the data"
            ) from error
        self._sinks[0].quarantine(sample.index, sample.id, reason)

    def _commit(self) -> None:
        self._check()
        commit = self._sinks[0].commit()
        self._sinks.popleft().__exit__(None, None, None)
        with self._lock:
            self._done = replace(self._done, commits=(*self._done.commits, commit))

    def _end(self) -> None:
        self._is_over = True

    def _count(self, *, written: int = 0, errors: int = 0, tokens: int = 0) -> None:
        with self._lock:
            now = self._done
            self._done = replace(
                now, written=now.written + written, errors=now.errors + errors, tokens=now.tokens + tokens
            )
