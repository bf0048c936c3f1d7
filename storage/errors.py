"""Errors of the store: each is one line that names the file or field, both values and the next step."""

import contextlib
from collections.abc import Iterator

from alignkd.disk.errors import AlignkdError
from alignkd.disk.next_step import is_no_room, next_step, reason


class StoreError(AlignkdError):
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
        step = "make room and run again" if is_no_room(error) else next_step(error)
        raise StoreError(f"{subject}: {reason(error)} ({error.filename or 'while writing'}); {step}") from error


def repair_step(error: OSError, repair: str) -> str:
    """What to do about a file of a store that cannot be read: `repair` where it is gone, not where it may be sound.

    A missing permission or a file server that is away is no damage, and to delete or restore a shard for it does harm.
    """
    gone = isinstance(error, FileNotFoundError | NotADirectoryError | IsADirectoryError)
    return repair if gone else next_step(error)
