"""Files that are whole or absent: written under a temporary name in the same folder, flushed to the disk, renamed."""

import os
import stat
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from alignkd.disk.opening import check_is_file


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """A temporary path to write to, which is renamed to `path` at the end of the block, unless the block raises.

    After a full disk, Ctrl-C or a crash the old content of `path` remains. Missing folders are created. A link is
    followed, and its target replaced. The mode is that of a new file under the umask, also where a library such as
    safetensors creates files that only their owner can read.

    Raises:
        OSError: the file cannot be written, or `path` is not a file (a folder, a device, a pipe).
    """
    target = path.resolve()
    check_is_file_or_absent(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    # not the file's own name with a suffix, which may be too long
    temporary = target.with_name(f".part-{os.getpid()}-{uuid.uuid4().hex[:8]}{target.suffix[:32]}")
    try:
        mode = _create(temporary, path)
        yield temporary
        temporary.chmod(mode)
        fsync_path(temporary)
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


def write_whole(path: Path, content: str | bytes) -> None:
    """Write text (as UTF-8) or bytes with `written_whole`."""
    with written_whole(path) as temporary:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)


def check_is_file_or_absent(path: Path) -> None:
    """Refuse what a rename would destroy: a rename onto /dev/null by root replaces the device by a file.

    Raises:
        OSError: the path is not a regular file, or a part of it is not a folder.
    """
    try:
        check_is_file(path.stat().st_mode, path)
    except FileNotFoundError:
        return


def _create(temporary: Path, path: Path) -> int:
    """Create an empty file and return its mode; the umask itself cannot be read without setting it for all threads."""
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    except OSError as error:
        raise type(error)(error.errno, error.strerror, str(path)) from None  # users know only this name
    try:
        return stat.S_IMODE(os.fstat(descriptor).st_mode)
    finally:
        os.close(descriptor)


def fsync_path(path: Path) -> None:
    """Force a file, or the names in a folder, to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
