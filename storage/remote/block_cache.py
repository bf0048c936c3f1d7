"""Blocks of remote files on the local disk: bounded in size, shared by processes, safe against kill -9.

FOLDER/blocks/GROUP/NAME   one block; GROUP and NAME are hashes of its origin. Its mtime is the time of its last use.
FOLDER/drafts/...          temporary files, locked by their writer (`files/exclusive.py`): an unlocked one is a leftover
FOLDER/usage               bytes in `blocks`, 8 bytes; locked while blocks are added or evicted

A temporary file is renamed into place under the lock, after the new total is written. A process that is killed in
between leaves a total that is too high, which the next count corrects. Each process writes one temporary file at a
time, so the cache never takes more than its limit and one block per process.

The cache does not verify blocks: readers verify the checksums of what they read, and after a mismatch drop the block
and fetch it again.
"""

import contextlib
import fcntl
import os
import threading
import time
from collections.abc import Iterator
from hashlib import blake2b
from pathlib import Path

from alignkd.storage.files.exclusive import make_temporary_folder, remove, remove_leftovers
from alignkd.storage.files.source import Buffers

# evict a little more than necessary, so that not every new block lists the folder
SLACK = 0.1
# precision of a block's time of last use
TOUCH_SECONDS = 30.0
# a lock is held for milliseconds, unless a process was forked meanwhile and keeps it
LOCK_SECONDS = 10.0
NAME_BYTES = 16


def hashed(*parts: object) -> str:
    """A file name that identifies the parts."""
    return blake2b("\n".join(map(str, parts)).encode(), digest_size=NAME_BYTES).hexdigest()


class BlockCache:
    """See the module. Methods may raise OSError, for example on a full disk: then work without the cache."""

    def __init__(self, folder: Path, limit: int, touch_seconds: float = TOUCH_SECONDS) -> None:
        self.folder, self.limit, self.touch_seconds = folder, limit, touch_seconds
        self.blocks, self.drafts = folder / "blocks", folder / "drafts"
        self._writing = threading.Lock()
        for path in (folder, self.blocks, self.drafts):
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
        remove_leftovers(self.drafts)
        with self._usage() as usage:
            usage.write(self.num_bytes())

    def read_into(self, group: str, name: str, size: int, buffers: Buffers, offset: int) -> bool:
        """Fill buffers from a block of `size` bytes; False if no block of that size is cached."""
        try:
            descriptor = os.open(f"{self.blocks}/{group}/{name}", os.O_RDONLY)
        except FileNotFoundError:
            return False
        try:
            status = os.fstat(descriptor)
            if status.st_size != size:
                return False
            if time.time() - status.st_mtime > self.touch_seconds:
                os.utime(descriptor)
            wanted = sum(map(len, buffers))
            return os.preadv(descriptor, buffers, offset) == wanted  # type: ignore[arg-type]  # arrays are buffers
        finally:
            os.close(descriptor)

    def has(self, group: str, name: str, size: int) -> bool:
        """Whether a block of that size is cached."""
        try:
            return os.stat(f"{self.blocks}/{group}/{name}").st_size == size  # noqa: PTH116 - called per read
        except FileNotFoundError:
            return False

    def put(self, group: str, name: str, data: bytes) -> None:
        """Store a block; evicts the least recently used ones."""
        if len(data) > self.limit:
            return
        with self._writing, self._temporary(data) as temporary, self._usage() as usage:
            target = self.blocks / group / name
            replaced = target.stat().st_size if target.exists() else 0
            total = usage.read() - replaced
            if total + len(data) > self.limit:
                total = self._evict(int((self.limit - len(data)) * (1 - SLACK)), spare=target)
            usage.write(total + len(data))
            target.parent.mkdir(exist_ok=True)
            temporary.rename(target)

    def drop(self, group: str) -> None:
        """Remove all blocks of a group."""
        with self._usage() as usage:
            folder, freed = self.blocks / group, 0
            for path, size, _ in _files_of(folder):
                freed += size
                Path(path).unlink(missing_ok=True)
            usage.write(max(0, usage.read() - freed))

    def num_bytes(self) -> int:
        """Bytes of all blocks, counted."""
        return sum(size for _, size, _ in self._entries())

    def _evict(self, limit: int, spare: Path) -> int:
        """Remove the least recently used blocks until at most `limit` bytes remain; returns what remains."""
        remove_leftovers(self.drafts)
        entries = sorted((entry for entry in self._entries() if entry[0] != str(spare)), key=lambda entry: entry[2])
        total = sum(size for _, size, _ in entries)
        for path, size, _ in entries:
            if total <= limit:
                break
            Path(path).unlink(missing_ok=True)
            total -= size
        for folder in self.blocks.iterdir():
            with contextlib.suppress(OSError):  # not empty
                folder.rmdir()
        return total

    def _entries(self) -> Iterator[tuple[str, int, int]]:
        for folder in self.blocks.iterdir():
            yield from _files_of(folder)

    @contextlib.contextmanager
    def _temporary(self, data: bytes) -> Iterator[Path]:
        folder, lock = make_temporary_folder(self.drafts, "block")
        try:
            (folder / "block").write_bytes(data)
            yield folder / "block"
        finally:
            remove(folder)
            lock.release()

    @contextlib.contextmanager
    def _usage(self) -> "Iterator[_Usage]":
        descriptor = os.open(self.folder / "usage", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            _lock(descriptor)
            yield _Usage(descriptor)
        finally:
            # closing alone does not unlock it: a process forked meanwhile shares the lock
            fcntl.flock(descriptor, fcntl.LOCK_UN)
            os.close(descriptor)


class _Usage:
    """The shared total in its locked file."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def read(self) -> int:
        return int.from_bytes(os.pread(self._descriptor, 8, 0), "little")

    def write(self, total: int) -> None:
        os.pwrite(self._descriptor, total.to_bytes(8, "little"), 0)


def _files_of(folder: Path) -> Iterator[tuple[str, int, int]]:
    """Path, size and time of last use of each block in a group."""
    try:
        entries = list(os.scandir(folder))
    except (FileNotFoundError, NotADirectoryError):
        return
    for entry in entries:
        with contextlib.suppress(FileNotFoundError):
            status = entry.stat()
            yield entry.path, status.st_size, status.st_mtime_ns


def _lock(descriptor: int) -> None:
    deadline = time.monotonic() + LOCK_SECONDS
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.002)
