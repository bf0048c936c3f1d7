"""One worker of a dump on a cluster: an ordinary `dump`, whose shards are assigned one by one while it runs.

So a shard is written, claimed, committed and shown in the store's status as in every other way of running.
"""

import contextlib
import os
import socket
import threading
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from alignkd.disk.errors import AlignkdError
from alignkd.disk.next_step import next_step, reason
from alignkd.teacher_dump.dump import dump
from alignkd.teacher_dump.job import DumpJob, DumpResult
from alignkd.teacher_dump.operation.control import DumpControl, Output
from alignkd.teacher_dump.operation.status import WorkerStatus
from alignkd.teacher_dump.operation.workers import Claims, Worker
from alignkd.vlm.errors import one_line
from alignkd.vlm.hardware.memory_faults import may_be_out_of_memory

# how long the writing thread waits for a shard before it reports progress
TICK_SECONDS = 0.2

# what became of an assigned shard: written by this worker; committed by another one; claimed by another one, which is
# still writing it, or has died a moment ago; not begun, because the dump of this worker ended
Fate = Literal["written", "committed", "claimed", "left"]


@dataclass(frozen=True, kw_only=True)
class Report:
    """The counters of a worker, and its notices since the last report."""

    status: WorkerStatus
    notices: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Ended:
    """How the dump of a worker ended.

    Attributes:
        result: None after an error.
        problem: the error in one line.
        is_certain: whether the error would come again in every worker, as that of a wrong setting.
        fates: what became of the assigned shards; one that is missing was left.
        report: the last report.
    """

    result: DumpResult | None = None
    problem: str = ""
    is_certain: bool = False
    fates: Mapping[int, Fate] = field(default_factory=dict)
    report: Report | None = None


class Member:
    """The worker; every method may be called while others wait.

    Args:
        job: as of `dump`; its control is not used.
        number: number of the worker, from 0.
        folder: the current folder of the command that started it, for paths that are relative to it.
    """

    def __init__(self, job: DumpJob, number: int, folder: Path | None = None) -> None:
        if folder is not None:
            with contextlib.suppress(OSError):  # a machine without this folder has the files under whole paths
                os.chdir(folder)
        self._control = _AssignedControl(number)
        self._job = replace(job, control=self._control)
        self._ended: Ended | None = None
        self._thread = threading.Thread(target=self._run, name="dump", daemon=True)
        self._thread.start()

    def host(self) -> str:
        """Name of the machine."""
        return socket.gethostname()

    def open(self) -> list[int] | None:
        """Wait until the teacher is loaded: the shards of the store to be written; None if the dump has ended."""
        return self._control.wait_for_pending()

    def write(self, shard: int) -> Fate:
        """Assign a shard and wait until its fate is known."""
        return self._control.assign(shard)

    def stop(self) -> None:
        """Let the current shard be finished and begin no other."""
        self._control.stops.finishing = True
        self._control.close()

    def finish(self) -> Ended:
        """End the dump when the assigned shards are written."""
        self._control.close()
        self._thread.join()
        assert self._ended is not None
        return replace(self._ended, fates=self._control.fates(), report=self.report())

    def report(self) -> Report:
        """The counters and the new notices."""
        return Report(status=self._control.status, notices=self._control.new_notices())

    def _run(self) -> None:
        try:
            self._ended = Ended(result=dump(self._job))
        except AlignkdError as error:
            # another worker may have more memory
            has_less = error.__cause__ is not None and may_be_out_of_memory(error.__cause__)
            self._ended = Ended(problem=str(error), is_certain=not has_less)
        except OSError as error:
            self._ended = Ended(problem=f"{error.filename or 'output'}: {reason(error)}; {next_step(error)}")
        except BaseException as error:
            traceback.print_exc()  # into the engine's log of this worker
            self._ended = Ended(problem=f"{type(error).__name__}: {one_line(error)[:500]}")
        finally:
            self._control.end()


class _Assigned(Worker):
    """A worker that owns no shard from the start."""

    def __str__(self) -> str:
        return f"cluster {self.rank}"

    def owns(self, shard: int) -> bool:
        return False


class _AssignedControl(DumpControl):
    """Takes the shards that `assign` adds, in their order."""

    def __init__(self, number: int) -> None:
        self._notices: deque[str] = deque()
        super().__init__(_Assigned(rank=number), notice=self._notices.append, visible=True)
        self._changed = threading.Condition()
        self._pending: list[int] | None = None
        self._assigned: deque[int] = deque()
        self._fates: dict[int, Fate] = {}
        self._is_closed = self._has_ended = False

    def wait_for_pending(self) -> list[int] | None:
        with self._changed:
            self._changed.wait_for(lambda: self._pending is not None or self._has_ended)
            return None if self._has_ended else self._pending

    def assign(self, shard: int) -> Fate:
        with self._changed:
            self._fates.pop(shard, None)
            self._assigned.append(shard)
            self._changed.notify_all()
            self._changed.wait_for(lambda: shard in self._fates or self._has_ended)
            return self._fates.get(shard, "left")

    def fates(self) -> dict[int, Fate]:
        with self._changed:
            return dict(self._fates)

    def close(self) -> None:
        """Assign no more."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()

    def end(self) -> None:
        """The dump has ended; shards without a fate are left."""
        with self._changed:
            self._has_ended = True
            self._changed.notify_all()

    def new_notices(self) -> tuple[str, ...]:
        return tuple(self._notices.popleft() for _ in range(len(self._notices)))

    def chosen(self, claims: Claims, output: Output) -> Iterator[int]:
        if self._pending is None:
            self._set(lambda: setattr(self, "_pending", output.pending_shards()))
        while self._assigned:
            shard = self._assigned.popleft()
            if not claims.take(shard):
                self._settle(shard, "claimed" if output.is_pending(shard) else "committed")
            elif not output.is_pending(shard):
                claims.release(shard)
                self._settle(shard, "committed")
            else:
                yield shard

    def waits_for_more(self) -> bool:
        with self._changed:
            self._changed.wait_for(lambda: self._assigned or self._is_closed, timeout=TICK_SECONDS)
            return bool(self._assigned or not self._is_closed) and not self.stops.finishing

    def committed(self, shard: int, *, samples: int, num_bytes: int) -> None:
        super().committed(shard, samples=samples, num_bytes=num_bytes)
        self._settle(shard, "written")

    def _settle(self, shard: int, fate: Fate) -> None:
        self._set(lambda: self._fates.__setitem__(shard, fate))

    def _set(self, change: Callable[[], object]) -> None:
        with self._changed:
            change()
            self._changed.notify_all()
