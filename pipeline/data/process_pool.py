"""Tasks in several processes, results in the order of the tasks; nothing is left running, however the run ends."""

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing.synchronize import Event
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

from alignkd.vlm.errors import InputError

C = TypeVar("C")
T = TypeVar("T")
R = TypeVar("R")

# Enough that no worker waits for the next task, few enough that results do not pile up.
TASKS_PER_WORKER = 4


def usable_cpus() -> int:
    """CPUs this process may use."""
    return len(os.sched_getaffinity(0))


class Workers(Generic[C]):
    """Processes that share a context; entered, used by `map`, and ended when left.

    Args:
        context: given to every task as its first argument; pickled once per process.
        count: processes; with 1 the work is done in this process.
    """

    def __init__(self, context: C, count: int) -> None:
        self._context, self._count = context, count
        self._pool: ProcessPoolExecutor | None = None

    def __enter__(self) -> Self:
        if self._count > 1:
            # spawn: a fork of a process that runs torch's threads may hang
            spawn = multiprocessing.get_context("spawn")
            self._stop = spawn.Event()
            self._pool = ProcessPoolExecutor(
                self._count, mp_context=spawn, initializer=_begin, initargs=(self._context, self._stop)
            )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._pool is not None:
            self._stop.set()
            self._pool.shutdown(cancel_futures=True)

    def map(self, function: Callable[[C, T], R], tasks: Iterable[T]) -> Iterator[R]:
        """`function(context, task)` of every task, in their order, whatever the number of processes.

        Raises:
            InputError: a process was killed or has no memory left.
        """
        if self._pool is None:
            yield from (function(self._context, task) for task in tasks)
            return
        waiting: deque[Future[Any]] = deque()
        try:
            for task in tasks:
                with _interrupt_held_back():
                    waiting.append(self._pool.submit(_work, function, task))
                if len(waiting) == self._count * TASKS_PER_WORKER:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        except (BrokenProcessPool, MemoryError) as error:
            raise InputError(
                f"one of {self._count} worker processes was killed or ran out of memory; use fewer workers"
            ) from error


@contextmanager
def _interrupt_held_back() -> Iterator[None]:
    """Processes started in here never see Ctrl-C, which a terminal sends to all; this one sees it afterwards."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


_shared: Any = None
_stopped: Event | None = None


def _begin(context: object, stop: Event) -> None:
    global _shared, _stopped
    _shared, _stopped = context, stop
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A worker waits for tasks on a pipe that it holds open itself, so it would outlive a parent that was killed."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _work(function: Callable[[Any, T], R], task: T) -> R | None:
    assert _stopped is not None
    return None if _stopped.is_set() else function(_shared, task)
