"""Files that are whole or absent: written under another name beside their own, flushed to the disk, renamed."""

import os
import stat
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from alignkd.disk.opening import check_is_file


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Give a path to write to; what is there at the end of the block becomes `path`, unless the block raises.

    A full disk, Ctrl-C or a crash leave what was at `path` before. Missing folders are made. A link is followed: the
    file that it leads to is replaced. The mode is what the umask gives a new file, whoever writes it: safetensors,
    for one, makes files that only their owner can read.

    Raises:
        OSError: it cannot be written, or `path` is something else than a file (a folder, a device, a pipe).
    """
    target = path.resolve()
    check_is_file_or_absent(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    # not the file's own name with an ending: that may be longer than names can be
    aside = target.with_name(f".part-{os.getpid()}-{uuid.uuid4().hex[:8]}{target.suffix[:32]}")
    try:
        mode = _create(aside, path)
        yield aside
        aside.chmod(mode)
        fsync_path(aside)
        aside.replace(target)
    finally:
        aside.unlink(missing_ok=True)


def write_whole(path: Path, content: str | bytes) -> None:
    """Write text (as UTF-8) or bytes by `written_whole`."""
    with written_whole(path) as aside:
        aside.write_bytes(content.encode() if isinstance(content, str) else content)


def check_is_file_or_absent(path: Path) -> None:
    """Refuse what a rename would destroy: root's rename onto /dev/null makes a file of it.

    Raises:
        OSError: there is something that is no regular file, or a part of the path is no folder.
    """
    try:
        check_is_file(path.stat().st_mode, path)
    except FileNotFoundError:
        return


def _create(aside: Path, path: Path) -> int:
    """Make an empty file; its mode. Reading the umask itself would mean setting it, for all threads."""
    try:
        descriptor = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    except OSError as error:
        raise type(error)(error.errno, error.strerror, str(path)) from None  # users know the other name only
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
