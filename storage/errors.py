"""Errors of the store: each is one line that names the file or field, both values and the next step."""

import contextlib
from collections.abc import Iterator

from alignkd.disk.errors import AlignkdError
from alignkd.disk.next_step import is_no_room, next_step, reason


class StoreError(AlignkdError):
    """A store, a record or a request with an invalid value."""


class RecordError(StoreError):
    """Values of one sample that cannot be stored; the next sample may be usable.

    The message names the field; the caller adds the sample.
    """


class CorruptStoreError(StoreError):
    """Stored bytes that differ from what was committed."""


class RemoteError(StoreError):
    """A remote store does not answer, or refuses; this does not mean that its bytes are damaged."""


@contextlib.contextmanager
def naming(subject: str) -> Iterator[None]:
    """Prefix the StoreErrors of a block with the subject."""
    try:
        yield
    except StoreError as error:
        raise type(error)(f"{subject}: {error}") from None


@contextlib.contextmanager
def disk_errors(subject: str) -> Iterator[None]:
    """Convert an OSError, such as a full disk, to a StoreError of one line."""
    try:
        yield
    except OSError as error:
        step = "free some space and run again" if is_no_room(error) else next_step(error)
        raise StoreError(f"{subject}: {reason(error)} ({error.filename or 'while writing'}); {step}") from error


def repair_step(error: OSError, repair: str) -> str:
    """The next step for a file of a store that cannot be read: `repair` only if the file does not exist.

    A missing permission or an absent file server is not damage: deleting or restoring a shard would then do harm.
    """
    gone = isinstance(error, FileNotFoundError | NotADirectoryError | IsADirectoryError)
    return repair if gone else next_step(error)
