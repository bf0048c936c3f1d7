"""Reads that fail for a moment: tried again for about a minute, and told apart from a file that is not there.

A file server that restarts, a lost mount or too many open files says nothing about the file that was asked for. A
sample must not be called unusable for it, so the phase ends instead when patience has not helped.
"""

import errno
import functools
import time
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from alignkd.vlm.errors import InputError

P = ParamSpec("P")
R = TypeVar("R")

# Not among them: what the file itself or its name causes (ENOENT, ENOTDIR, EISDIR, ELOOP, EACCES, EPERM, EINVAL ...).
_NAMES = (
    "EIO", "EREMOTEIO", "ESTALE", "ETIMEDOUT", "ENOTCONN", "ESHUTDOWN", "ECONNRESET", "ECONNREFUSED", "ECONNABORTED",
    "EHOSTDOWN", "EHOSTUNREACH", "ENETDOWN", "ENETUNREACH", "ENETRESET", "ENOLINK", "ECOMM", "EPROTO", "EKEYEXPIRED",
    "EKEYREVOKED", "ENOKEY", "EAGAIN", "EBUSY", "EINTR", "EDEADLK", "ENOLCK", "EMFILE", "ENFILE", "ENOMEM", "ENOBUFS",
)  # fmt: skip
TRANSIENT = frozenset(getattr(errno, name) for name in _NAMES if hasattr(errno, name))
# seconds before each further attempt
PAUSES = (1.0, 2.0, 4.0, 8.0, 15.0, 30.0)


class TransientReadError(InputError):
    """A read failed again and again for a reason that says nothing about the file. No SampleError: nothing is listed
    as unusable for it."""


def transient_cause(error: BaseException | None) -> OSError | None:
    """The transient OSError that an error is, or was made from."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in TRANSIENT:
            return error
        error = error.__cause__
    return None


def patient(read: Callable[P, R]) -> Callable[P, R]:
    """A function that reads a file, made to try again where it fails for a transient reason.

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
