"""Durable files: locked temporary files, exclusive creation, fsync.

Every temporary file or folder is locked (flock) by the process that makes it. The kernel releases the lock when that
process ends, however it ends, so an unlocked temporary file is a leftover. Names, ages and process numbers are not
evidence: containers and reused process numbers make them ambiguous.
"""

import contextlib
import fcntl
import os
import shutil
import uuid
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from weakref import WeakSet

from alignkd.disk.whole_file import fsync_path as fsync_path

TEMPORARY_PREFIX = ".tmp-"
FSYNC_THREADS = 16
COPY_BYTES = 1 << 20
# a longer file is read in order, see `drop_cached_pages`
FETCHED_BYTES = 1 << 20


def fsync_all(paths: Iterable[Path]) -> None:
    """Force many files and folders to disk, concurrently: the file system then combines its journal writes."""
    with ThreadPoolExecutor(FSYNC_THREADS) as pool:
        list(pool.map(fsync_path, paths))


def drop_cached_pages(path: Path) -> None:
    """Drop a clean file from the page cache, and start to read a short one from the disk again in the background.

    Read ahead in this way, a file is cached in pages of 4 KiB, and copying out of them takes twice as long as out of
    the large pages that reading from beginning to end makes. So a long file is only dropped.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        if os.fstat(descriptor).st_size <= FETCHED_BYTES:
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_WILLNEED)
    finally:
        os.close(descriptor)


class Lock:
    """An exclusive lock on an existing file or folder; ends with `release` or with the process.

    A forked child does not hold it: a lock of a killed process would last until its last data worker has ended.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor: int | None = descriptor
        _HELD.add(self)

    @classmethod
    def take(cls, path: Path) -> "Lock | None":
        """The lock, or None if it is held elsewhere or the path does not exist.

        A path that was replaced between opening and locking counts as missing.
        """
        try:
            descriptor = _open_for_locking(path)
        except FileNotFoundError:
            return None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(descriptor), path.stat()):
                return cls(descriptor)
        except (BlockingIOError, FileNotFoundError):
            pass
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)
        return None

    def release(self) -> None:
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            with contextlib.suppress(OSError):  # closing alone would leave it to a child that C code forked
                fcntl.flock(descriptor, fcntl.LOCK_UN)
            os.close(descriptor)

    def forget(self) -> None:
        """Close the descriptor of a forked child; the parent keeps the lock."""
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            os.close(descriptor)


_HELD: "WeakSet[Lock]" = WeakSet()


def _forget_in_child() -> None:
    for lock in list(_HELD):
        lock.forget()


os.register_at_fork(after_in_child=_forget_in_child)


def _open_for_locking(path: Path) -> int:
    """NFS grants an exclusive lock only on a descriptor opened for writing; a folder cannot be opened for writing."""
    try:
        return os.open(path, os.O_RDWR)
    except FileNotFoundError:
        raise
    except OSError:
        return os.open(path, os.O_RDONLY)


def make_temporary_folder(parent: Path, name: str) -> tuple[Path, Lock]:
    """A new locked folder `.tmp-<name>-<pid>-<random>`."""
    while True:
        path = _temporary_path(parent, name)
        path.mkdir()
        # another process may remove the still unlocked folder as a leftover: then try again
        if (lock := Lock.take(path)) is not None:
            return path, lock


def _temporary_path(parent: Path, name: str) -> Path:
    return parent / f"{TEMPORARY_PREFIX}{name}-{os.getpid()}-{uuid.uuid4().hex[:8]}"


def create_exclusively(path: Path, source: Path | bytes, temporary: Path) -> bool:
    """Create a complete, durable file under a new name; False if a file of that name exists.

    The name appears when all bytes are on disk.

    Args:
        source: the content, or a file to copy, of which little is in memory at a time.
        temporary: a folder on the same file system.
    """
    with _temporary_file(temporary, path.stem, source) as complete:
        try:
            os.link(complete, path)
        except FileExistsError:
            return False
    fsync_path(path.parent)
    return True


def replace_durably(path: Path, data: bytes, temporary: Path) -> None:
    """Replace a file by a complete, durable one: at every moment the old or the new one exists whole.

    Args:
        temporary: a folder on the same file system.
    """
    with _temporary_file(temporary, path.stem, data) as complete:
        complete.replace(path)
    fsync_path(path.parent)


@contextlib.contextmanager
def _temporary_file(parent: Path, name: str, source: Path | bytes) -> Iterator[Path]:
    """A durable file with the content of `source`, locked; removed at the end of the block unless it was renamed."""
    path, lock = _make_temporary_file(parent, name)
    try:
        with path.open("wb") as file:
            if isinstance(source, bytes):
                file.write(source)
            else:
                with source.open("rb") as original:
                    shutil.copyfileobj(original, file, COPY_BYTES)
            file.flush()
            os.fsync(file.fileno())
        yield path
    finally:
        path.unlink(missing_ok=True)
        lock.release()


def _make_temporary_file(parent: Path, name: str) -> tuple[Path, Lock]:
    """A new locked empty file `.tmp-<name>-<pid>-<random>`."""
    while True:
        path = _temporary_path(parent, name)
        path.touch(exist_ok=False)
        if (lock := Lock.take(path)) is not None:
            return path, lock


def remove(path: Path) -> None:
    """Remove a file or a folder with its content; nothing happens if it does not exist."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def remove_leftovers(folder: Path) -> None:
    """Remove temporary files and folders whose owners have ended."""
    for path in folder.glob(f"{TEMPORARY_PREFIX}*"):
        with locked_if_free(path) as lock:
            if lock is not None:
                remove(path)


@contextlib.contextmanager
def locked_if_free(path: Path) -> Iterator[Lock | None]:
    """The lock of a path for the length of a block, None if it is held elsewhere."""
    lock = Lock.take(path)
    try:
        yield lock
    finally:
        if lock is not None:
            lock.release()
