"""Work that is done beside the caller's, in order, by one thread."""

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

# jobs that may wait; the next one waits for the first of them
MAX_WAITING = 4


class Background:
    """Does jobs one after the other while the caller goes on; what one raises comes back at a later call."""

    def __init__(self) -> None:
        self._pool: ThreadPoolExecutor | None = None
        self._waiting: deque[Future[None]] = deque()

    def do(self, job: Callable[[], None]) -> None:
        """Queue a job; raises what an earlier one raised. Its thread starts with the first job."""
        if self._pool is None:
            self._pool = ThreadPoolExecutor(1, thread_name_prefix="alignkd-store")
        while len(self._waiting) >= MAX_WAITING or (self._waiting and self._waiting[0].done()):
            self._waiting.popleft().result()
        self._waiting.append(self._pool.submit(job))

    def finish(self) -> None:
        """Wait for all jobs; raises what the first that failed raised."""
        while self._waiting:
            self._waiting.popleft().result()

    def end(self) -> None:
        """Drop jobs that have not begun, wait for the one that has, and end the thread; harmless when done twice."""
        pool, self._pool = self._pool, None
        if pool is not None:
            pool.shutdown(cancel_futures=True)
        self._waiting.clear()
