"""Retries for reads that fail temporarily, for about a minute, and the difference from a file that is missing.

A restarting file server, a lost mount or too many open files are not faults of the requested file. A sample must not
be listed as unusable because of them, so the phase ends with an error if retrying does not help.
"""

import errno
import functools
import time
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from alignkd.vlm.errors import InputError

P = ParamSpec("P")
R = TypeVar("R")

# Excluded: errors that the file itself or its name causes (ENOENT, ENOTDIR, EISDIR, ELOOP, EACCES, EPERM, EINVAL ...).
_NAMES = (
    "EIO", "EREMOTEIO", "ESTALE", "ETIMEDOUT", "ENOTCONN", "ESHUTDOWN", "ECONNRESET", "ECONNREFUSED", "ECONNABORTED",
    "EHOSTDOWN", "EHOSTUNREACH", "ENETDOWN", "ENETUNREACH", "ENETRESET", "ENOLINK", "ECOMM", "EPROTO", "EKEYEXPIRED",
    "EKEYREVOKED", "ENOKEY", "EAGAIN", "EBUSY", "EINTR", "EDEADLK", "ENOLCK", "EMFILE", "ENFILE", "ENOMEM", "ENOBUFS",
)  # fmt: skip
TRANSIENT = frozenset(getattr(errno, name) for name in _NAMES if hasattr(errno, name))
# seconds before each further attempt
PAUSES = (1.0, 2.0, 4.0, 8.0, 15.0, 30.0)


class TransientReadError(InputError):
    """All retries of a read failed for a reason unrelated to the file.

    Not a SampleError, so that no sample is listed as unusable.
    """


def transient_cause(error: BaseException | None) -> OSError | None:
    """The transient OSError that an error is or was caused by; None if there is none."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in TRANSIENT:
            return error
        error = error.__cause__
    return None


def patient(read: Callable[P, R]) -> Callable[P, R]:
    """Decorate a function that reads a file so that transient failures are retried.

    Raises:
        TransientReadError: all attempts failed.
    """

    @functools.wraps(read)
    def attempts(*args: P.args, **kwargs: P.kwargs) -> R:
        started = time.monotonic()
        for pause in (*PAUSES, None):
            try:
                return read(*args, **kwargs)
            except (OSError, InputError) as error:
                if (cause := transient_cause(error)) is None:
                    raise
                if pause is None:
                    what = str(error).rpartition("; ")[0] or str(error)
                    raise TransientReadError(
                        f"{what}: {len(PAUSES) + 1} attempts in {time.monotonic() - started:.0f} s; run the same "
                        "command again when the file system answers, or remove the file if it alone cannot be read"
                    ) from cause
            time.sleep(pause)
        raise AssertionError("the last attempt returns or raises")

    return attempts
