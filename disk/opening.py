"""Whether a file can be opened at all, asked before a library that hides the reason opens it."""

import errno
import os
import stat
from pathlib import Path


def check_readable(path: Path) -> None:
    """Open a file for reading, read its first byte and close it.

    A pipe that nobody writes to is refused, not waited for.

    Raises:
        OSError: with errno and file name; it cannot be opened or read, or is not a regular file.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        check_is_file(os.fstat(descriptor).st_mode, path)
        os.read(descriptor, 1)
    except OSError as error:  # of a descriptor, which has no name
        raise type(error)(error.errno, error.strerror, str(path)) from None
    finally:
        os.close(descriptor)


def check_is_file(mode: int, path: Path) -> None:
    """Refuse the `st_mode` of a folder, device, pipe or socket.

    Raises:
        OSError: EISDIR or ENODEV, with the file's name.
    """
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not stat.S_ISREG(mode):
        raise OSError(errno.ENODEV, "Not a regular file", str(path))
