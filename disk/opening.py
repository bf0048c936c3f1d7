"""Open files without waiting for a pipe and without reading a device endlessly.

`open()` of a named pipe waits until a process writes into it, and `/dev/zero` has no end. A library that opens a file
by its name may also hide the system's reason for an error: call `check_readable` before such a library.
"""

import errno
import os
import stat
from io import BufferedReader
from pathlib import Path

_KINDS = (
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


class NotRegularError(OSError):
    """The path is a pipe, a device or a socket; `strerror` contains which."""


def open_regular(path: Path) -> BufferedReader:
    """A regular file, open for reading; raises as `regular_descriptor`."""
    return os.fdopen(regular_descriptor(path), "rb")


def regular_descriptor(path: os.PathLike[str] | str) -> int:
    """The descriptor of a regular file, open for reading; links are followed.

    Raises:
        NotRegularError: a pipe, a device or a socket. IsADirectoryError: a folder. OSError: as `open`.
    """
    flags = os.O_RDONLY | os.O_CLOEXEC
    try:
        # a pipe is opened at once, whether or not a process writes into it
        descriptor = os.open(path, flags | os.O_NONBLOCK)
    except OSError as error:
        check_regular(path)  # a socket cannot be opened at all
        if error.errno != errno.EWOULDBLOCK:
            raise
        descriptor = os.open(path, flags)  # a file server holds a lease on the file: the kernel waits until it ends
    try:
        check_is_file(os.fstat(descriptor).st_mode, path)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def read_regular(path: Path) -> bytes:
    """All bytes of a regular file; raises as `open_regular`."""
    with open_regular(path) as stream:
        return stream.read()


def open_regular_or_pipe(path: Path) -> BufferedReader:
    """A file that may also be a pipe, such as `<(command)` and `/dev/stdin`; devices are refused.

    Raises:
        NotRegularError: a device or a socket. OSError: as `open`.
    """
    return path.open("rb") if stat.S_ISFIFO(path.stat().st_mode) else open_regular(path)


def check_regular(path: os.PathLike[str] | str) -> None:
    """Call before a library opens the file itself; raises as `regular_descriptor`."""
    check_is_file(Path(path).stat().st_mode, path)


def check_readable(path: Path) -> None:
    """Open a regular file, read its first byte and close it.

    Raises:
        OSError: with errno and file name; it cannot be opened or read, or is not a regular file.
    """
    descriptor = regular_descriptor(path)
    try:
        os.read(descriptor, 1)
    except OSError as error:  # it has no file name, because it concerns a descriptor
        raise type(error)(error.errno, error.strerror, str(path)) from None
    finally:
        os.close(descriptor)


def check_is_file(mode: int, path: os.PathLike[str] | str) -> None:
    """Refuse the `st_mode` of a folder, device, pipe or socket.

    Raises:
        IsADirectoryError, NotRegularError: with the file's name.
    """
    if stat.S_ISREG(mode):
        return
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), os.fspath(path))
    kind = next((name for test, name in _KINDS if test(mode)), "something else")
    raise NotRegularError(errno.ENODEV, f"not a regular file, but {kind}", os.fspath(path))
