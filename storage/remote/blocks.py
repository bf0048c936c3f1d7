"""Fetches blocks of remote files, many at the same time, each once, through the cache on disk."""

import contextlib
import logging
import os
import threading
import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

from alignkd.storage.files.source import Buffers
from alignkd.storage.remote.block_cache import BlockCache, hashed
from alignkd.storage.remote.objects import ObjectStore, Span
from alignkd.storage.remote.settings import RemoteSettings

T = TypeVar("T")
# in place of a file's size: it is not known
KNOWN = -1
KEPT_BLOCKS = 64
_LOG = logging.getLogger("alignkd")


@dataclass(frozen=True, kw_only=True)
class Block:
    """Bytes `start:stop` of a remote file; group and name are its place in the cache."""

    path: str
    start: int
    stop: int
    group: str
    name: str


class BlockFetcher:
    """The blocks of one store. Its state belongs to one process: a forked or unpickled copy starts empty."""

    def __init__(self, objects: ObjectStore, settings: RemoteSettings) -> None:
        self.objects, self.settings = objects, settings
        self._reset()
        _FETCHERS.add(self)

    def __getstate__(self) -> dict[str, Any]:
        return {"objects": self.objects, "settings": self.settings}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.objects, self.settings = state["objects"], state["settings"]
        self._reset()
        _FETCHERS.add(self)

    def _reset(self) -> None:
        self._lock = threading.Lock()
        self._pool: ThreadPoolExecutor | None = None
        self._cache: BlockCache | None = None
        self._cache_works = self.settings.cached
        self._coming: dict[Block, Future[Span]] = {}

    def want(self, block: Block) -> Future[Span] | None:
        """Fetch a block in the background; None if it is cached."""
        with self._lock:
            if (coming := self._coming.get(block)) is not None:
                return coming
            if self._cached(lambda cache: cache.has(block.group, block.name, block.stop - block.start)):
                return None
            coming = self._coming[block] = self._threads().submit(self._fetch, block)
        coming.add_done_callback(lambda future: self._arrived(block, future))
        return coming

    def read_into(self, block: Block, buffers: Buffers, offset: int) -> int:
        """Fill buffers with a block's bytes from `offset`; returns the file's size, KNOWN for a cached block.

        Buffers are filled only if the file contains the whole block.

        Raises:
            AbsentError, RemoteError: as `ObjectStore.get_range`.
        """
        size = block.stop - block.start
        for _ in range(2):  # another process may evict the block between `want` and reading
            if self._cached(lambda cache: cache.read_into(block.group, block.name, size, buffers, offset)):
                return KNOWN
            coming = self.want(block)
            if coming is not None:
                span = self._result(coming, block)
                break
        else:
            span = self._fetch(block)
        if len(span.data) == size:
            _copy(span.data, buffers, offset)
        return span.total

    def forget(self, group: str) -> None:
        """Remove a group's blocks from the cache."""
        with self._lock:
            for block in [block for block in self._coming if block.group == group]:
                del self._coming[block]
        self._cached(lambda cache: cache.drop(group))

    def run_all(self, work: Callable[[str], T], arguments: Sequence[str]) -> "list[Future[T]]":
        """Run a function for each argument in this process's threads."""
        with self._lock:
            return [self._threads().submit(work, argument) for argument in arguments]

    def close(self) -> None:
        """Wait for running requests and cancel waiting ones; the fetcher can be used again."""
        with self._lock:
            pool = self._pool
        if pool is not None:
            pool.shutdown(cancel_futures=True)
        self._reset()

    def _fetch(self, block: Block) -> Span:
        span = self.objects.get_range(block.path, block.start, block.stop)
        if len(span.data) == block.stop - block.start:
            self._cached(lambda cache: cache.put(block.group, block.name, span.data))
        return span

    def _arrived(self, block: Block, future: Future[Span]) -> None:
        failed = not future.cancelled() and future.exception() is not None
        with self._lock:
            if self._coming.get(block) is future and (self._cache_works or failed or future.cancelled()):
                del self._coming[block]
            elif len(self._coming) > KEPT_BLOCKS:
                # without a cache, blocks fetched ahead wait here until they are read
                del self._coming[next(iter(self._coming))]
            waiting = list(self._coming.values()) if failed else []
        for other in waiting:
            # do not request all blocks ahead from a server that does not answer
            other.cancel()

    def _result(self, coming: Future[Span], block: Block) -> Span:
        try:
            span = coming.result()
        except CancelledError:
            return self._fetch(block)
        if not self._cache_works:
            with self._lock:
                self._coming.pop(block, None)
        return span

    def _threads(self) -> ThreadPoolExecutor:
        if self._pool is None:
            self._pool = ThreadPoolExecutor(self.settings.connections, "alignkd-fetch")
        return self._pool

    def _cached(self, work: Callable[[BlockCache], T]) -> T | None:
        """Use the cache as long as its disk works; after an error reading continues without it."""
        if not self._cache_works:
            return None
        try:
            if self._cache is None:
                self._cache = BlockCache(self.settings.cache_folder, self.settings.cache_bytes)
            return work(self._cache)
        except OSError as error:
            self._cache_works = False
            folder = self.settings.cache_folder
            _LOG.warning(
                "cache %s: %s; reading continues without it (ALIGNKD_CACHE sets another folder)", folder, error.strerror
            )
            return None


def group_of(objects: ObjectStore, path: str) -> str:
    """Group of a file in the cache: files of one shard share a group, so that they can be removed together."""
    return hashed(objects.identity, *path.split("/")[:2])


def _copy(data: bytes, buffers: Buffers, offset: int) -> None:
    content = memoryview(data)
    for buffer in buffers:
        buffer[:] = content[offset : offset + len(buffer)]
        offset += len(buffer)


_FETCHERS: "weakref.WeakSet[BlockFetcher]" = weakref.WeakSet()


def _after_fork() -> None:
    # a fork copies no threads, but locks that they hold
    for fetcher in list(_FETCHERS):
        with contextlib.suppress(AttributeError):
            fetcher._reset()


os.register_at_fork(after_in_child=_after_fork)
