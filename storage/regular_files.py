"""Opening the files of a store: a pipe or a device in the place of one is an error at once, and is never waited for.

`vlm.regular_files` does the same for the files that a user names; neither room imports the other.
"""

import errno
import os
import stat


def open_regular(path: os.PathLike[str] | str) -> int:
    """Descriptor of a regular file, open for reading.

    Raises:
        OSError: as `open`; with the text "not a regular file" for a pipe, a device or a socket.
    """
    flags = os.O_RDONLY | os.O_CLOEXEC
    try:
        # a pipe is opened at once, whether or not a process writes into it
        descriptor = os.open(path, flags | os.O_NONBLOCK)
    except BlockingIOError:  # a file server holds a lease on the file: the kernel waits until it ends
        descriptor = os.open(path, flags)
    mode = os.fstat(descriptor).st_mode
    if stat.S_ISREG(mode):
        return descriptor
    os.close(descriptor)
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), os.fspath(path))
    raise OSError(errno.EINVAL, "not a regular file, but a pipe or a device", os.fspath(path))
