"""Durable files: temporary names that die with their owner, exclusive creation, fsync.

Every temporary file or folder is locked (flock) by the process that makes it. The kernel drops the lock when
that process ends, however it ends, so a lock that can be had marks a leftover; names, ages and process
numbers, which containers and pid re-use make worthless, are not needed.
"""

import contextlib
import fcntl
import os
import shutil
import uuid
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from alignkd.disk.whole_file import fsync_path as fsync_path

TEMPORARY_PREFIX = ".tmp-"
FSYNC_THREADS = 16
COPY_BYTES = 1 << 20
# a longer file is worth being read in order
FETCHED_BYTES = 1 << 20


def fsync_all(paths: Iterable[Path]) -> None:
    """Force many files and folders to disk; together, because the file system then shares its journal writes."""
    with ThreadPoolExecutor(FSYNC_THREADS) as pool:
        list(pool.map(fsync_path, paths))


def read_anew(path: Path) -> None:
    """Ask the kernel to forget a clean file, and to fetch a short one from the disk again while others are looked at.

    Fetched in this way a file lies in the page cache in pages of 4 KiB, and copying out of them takes twice as long as
    out of the large ones that reading from beginning to end makes: a long file is left to whoever reads it so.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        if os.fstat(descriptor).st_size <= FETCHED_BYTES:
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_WILLNEED)
    finally:
        os.close(descriptor)


class Lock:
    """An exclusive lock on an existing file or folder; ends with `release` or with the process."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor: int | None = descriptor

    @classmethod
    def take(cls, path: Path) -> "Lock | None":
        """The lock, or None if somebody else holds it or the path is gone.

        A path that was replaced between opening and locking counts as gone.
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
            with contextlib.suppress(OSError):  # closing alone would leave it to a forked child
                fcntl.flock(descriptor, fcntl.LOCK_UN)
            os.close(descriptor)


def _open_for_locking(path: Path) -> int:
    """NFS grants an exclusive lock only on a descriptor that may write; of a folder there is none such."""
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
        # between these two lines another process may take the folder for a leftover; then try again
        if (lock := Lock.take(path)) is not None:
            return path, lock


def make_draft(parent: Path, name: str) -> tuple[Path, Lock]:
    """A new locked empty file `.tmp-<name>-<pid>-<random>`."""
    while True:
        path = _temporary_path(parent, name)
        path.touch(exist_ok=False)
        if (lock := Lock.take(path)) is not None:
            return path, lock


def _temporary_path(parent: Path, name: str) -> Path:
    return parent / f"{TEMPORARY_PREFIX}{name}-{os.getpid()}-{uuid.uuid4().hex[:8]}"


def create_exclusively(path: Path, data: bytes, temporary: Path) -> bool:
    """Create a complete, durable file under a name that nobody has; False if somebody has it.

    The name appears only when all bytes are on disk. `temporary` is a folder on the same file system.
    """
    return copy_exclusively(path, data, temporary)


def copy_exclusively(path: Path, source: Path | bytes, temporary: Path) -> bool:
    """As `create_exclusively`, from bytes or from another file, of which little is in memory at a time."""
    draft, lock = make_draft(temporary, path.stem)
    try:
        with draft.open("wb") as file:
            if isinstance(source, bytes):
                file.write(source)
            else:
                with source.open("rb") as original:
                    shutil.copyfileobj(original, file, COPY_BYTES)
            file.flush()
            os.fsync(file.fileno())
        os.link(draft, path)
    except FileExistsError:
        return False
    finally:
        draft.unlink(missing_ok=True)
        lock.release()
    fsync_path(path.parent)
    return True


def replace_durably(path: Path, data: bytes, temporary: Path) -> None:
    """Put a complete, durable file in the place of another: at every moment one of them stands there whole.

    `temporary` is a folder on the same file system.
    """
    draft, lock = make_draft(temporary, path.stem)
    try:
        with draft.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)
        lock.release()
    fsync_path(path.parent)


def remove(path: Path) -> None:
    """Remove a file or a folder with all it holds, if it is there."""
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
    """The lock of a path for the length of a block, None if it cannot be had."""
    lock = Lock.take(path)
    try:
        yield lock
    finally:
        if lock is not None:
            lock.release()
