"""Jobs that one thread does in order while the caller continues."""

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

# limit of waiting jobs; at the limit `do` waits for the first of them
MAX_WAITING = 4


class Background:
    """Does jobs one after the other; an exception of a job is raised by a later call."""

    def __init__(self) -> None:
        self._pool: ThreadPoolExecutor | None = None
        self._waiting: deque[Future[None]] = deque()

    def do(self, job: Callable[[], None]) -> None:
        """Queue a job; raises the exception of an earlier job. The thread starts with the first job."""
        if self._pool is None:
            self._pool = ThreadPoolExecutor(1, thread_name_prefix="alignkd-store")
        while len(self._waiting) >= MAX_WAITING or (self._waiting and self._waiting[0].done()):
            self._waiting.popleft().result()
        self._waiting.append(self._pool.submit(job))

    def finish(self) -> None:
        """Wait for all jobs; raises the exception of the first that failed."""
        while self._waiting:
            self._waiting.popleft().result()

    def end(self) -> None:
        """Drop jobs that have not started, wait for the running one, and end the thread; may be called twice."""
        pool, self._pool = self._pool, None
        if pool is not None:
            pool.shutdown(cancel_futures=True)
        self._waiting.clear()
