"""Errors of the store: each is one line that names the file or field, both values and the next step."""

import contextlib
import errno
from collections.abc import Iterator

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class StoreError(ValueError):
    """A store, a record or a request that cannot be right."""


class RecordError(StoreError):
    """One sample's values that cannot be cached; the next sample may be fine.

    Names the field, not the sample, which the caller knows.
    """


class CorruptStoreError(StoreError):
    """Bytes on disk that are not what was committed."""


class RemoteError(StoreError):
    """A remote store that does not answer, or refuses; says nothing about the store's bytes."""


@contextlib.contextmanager
def naming(subject: str) -> Iterator[None]:
    """Put the subject in front of the StoreErrors of a block."""
    try:
        yield
    except StoreError as error:
        raise type(error)(f"{subject}: {error}") from None


@contextlib.contextmanager
def disk_errors(subject: str) -> Iterator[None]:
    """Turn a full disk and its like into a StoreError of one line."""
    try:
        yield
    except OSError as error:
        step = "make room" if error.errno in _FULL else "check the folder"
        where = error.filename or "while writing"
        raise StoreError(f"{subject}: {error.strerror} ({where}); {step} and run again") from error
