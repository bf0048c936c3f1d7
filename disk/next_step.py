"""The next step for a user after an error of the operating system, one for each cause."""

import errno
import os
from pathlib import Path

# Only these concern space: "free some space" after any other cause is misleading.
_NO_ROOM = {
    errno.ENOSPC: "free some space there, or choose another place",
    errno.EDQUOT: "the quota is used up; free some space of your own there, or choose another place",
    errno.EFBIG: "the file system or `ulimit -f` allows no larger file; raise the limit, or choose another place",
}
_NOT_ALLOWED = {
    errno.EACCES: "this user lacks the permission (`ls -l` shows the owner); ask for it, or choose another path",
    errno.EPERM: "this user lacks the permission (`ls -l` shows the owner); ask for it, or choose another path",
    errno.EROFS: "it is mounted read-only; choose another place, or mount it for writing",
}
_WRONG_PATH = {
    errno.ENOENT: "check the path",
    errno.ENOTDIR: "a part of the path is a file, not a folder; check the path",
    errno.EISDIR: "it is a folder; give the path of a file",
    errno.EEXIST: "choose another name, or remove what is there",
    errno.ENOTEMPTY: "choose another name, or remove what is there",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.ELOOP: "the links form a loop; correct them",
    errno.EINVAL: "the file system does not allow this; check the path, or choose another place",
    errno.ENODEV: "it is neither a file nor a folder; check the path",
    errno.ENXIO: "it is neither a file nor a folder; check the path",
    errno.EXDEV: "the path crosses file systems; choose one place for both",
}
_BROKEN = {
    errno.EIO: "the disk, the file server or the terminal failed; see the system's log (`dmesg`), then run again",
    errno.ENOTCONN: "the file server is not connected; mount it again, then run again",
}
_FILE_SERVER = "the file server did not answer; run again when it does"
_ABSENT_FOR_NOW = dict.fromkeys(
    (errno.ESTALE, errno.ETIMEDOUT, errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.EREMOTEIO), _FILE_SERVER
)
_LIMITS = {
    errno.EMFILE: "too many files are open; raise `ulimit -n`, or lower the number of workers",
    errno.ENFILE: "the machine has too many files open; end other processes, or raise fs.file-max",
    errno.ENOMEM: "free some memory, then run again",
    errno.EAGAIN: "the limit of processes or locks is reached; raise `ulimit -u`, or end other processes",
    errno.EBUSY: "another process uses it; run again after that process has ended",
    errno.ETXTBSY: "another process uses it; run again after that process has ended",
    errno.EADDRINUSE: "another process has the port; choose another (MASTER_PORT)",
    errno.ECONNREFUSED: "no process listens at this address; check address and port",
    errno.ECONNRESET: "the other side closed the connection; run again",
    errno.EPIPE: "the process at the other end has ended; its message is above",
}
_STEPS = {**_NO_ROOM, **_NOT_ALLOWED, **_WRONG_PATH, **_BROKEN, **_ABSENT_FOR_NOW, **_LIMITS}
_UNKNOWN = "run again; if it happens again, see the system's log (`dmesg`)"


def next_step(error: OSError) -> str:
    """The next step for a user; never empty, without a full stop."""
    return _STEPS.get(error.errno or 0, _UNKNOWN)


def reason(error: OSError) -> str:
    """The system's own reason, such as "Permission denied"."""
    return error.strerror or " ".join(str(error).split()) or type(error).__name__


def is_no_room(error: OSError) -> bool:
    """Whether the disk is full, or a quota or a size limit is reached."""
    return error.errno in _NO_ROOM


def tried(path: os.PathLike[str] | str) -> str:
    """A path for a message; after a relative path comes the absolute one."""
    return str(path) if Path(path).is_absolute() else f"{path} (in full {Path(path).absolute()})"
