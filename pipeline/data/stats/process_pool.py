"""Runs tasks in several processes, with results in the order of the tasks; no process outlives the parent."""

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

# Enough to keep every worker busy, few enough to limit the number of waiting results.
TASKS_PER_WORKER = 4


def usable_cpus() -> int:
    """Number of CPUs that this process may use."""
    return len(os.sched_getaffinity(0))


class ProcessPool(Generic[C]):
    """Processes that share a context; a context manager that ends them on exit.

    Args:
        context: first argument of every task; pickled once per process.
        count: number of processes; with 1 the tasks run in this process.
    """

    def __init__(self, context: C, count: int) -> None:
        self._context, self._count = context, count
        self._pool: ProcessPoolExecutor | None = None

    def __enter__(self) -> Self:
        if self._count > 1:
            # spawn: a fork of a process with torch's threads may hang
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
        """Yield `function(context, task)` of every task, in order.

        Raises:
            InputError: a process was killed or ran out of memory.
        """
        if self._pool is None:
            yield from (function(self._context, task) for task in tasks)
            return
        waiting: deque[Future[Any]] = deque()
        try:
            for task in tasks:
                with _interrupts_blocked():
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
def _interrupts_blocked() -> Iterator[None]:
    """Block SIGINT: processes started inside never get a terminal's Ctrl-C; this process gets it afterwards."""
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
    """End the worker with its parent: it waits for tasks on a pipe whose other end it also holds, so it gets no EOF."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _work(function: Callable[[Any, T], R], task: T) -> R | None:
    assert _stopped is not None
    return None if _stopped.is_set() else function(_shared, task)
