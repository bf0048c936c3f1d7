"""The objects of a remote store: the interface that `s3.py`, `http.py`, `fsspec_store.py` and `hub/` implement.

Checks of answers, too.
"""

import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from alignkd.storage.errors import CorruptStoreError
from alignkd.storage.remote.retry import TransientError

PIECE_BYTES = 1 << 18
_CONTENT_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+)")


class AbsentError(Exception):
    """No object of that name exists."""


@dataclass(frozen=True, kw_only=True)
class Span:
    """Bytes of an object and the size of the whole object."""

    data: bytes
    total: int


@dataclass(frozen=True, kw_only=True)
class Listed:
    """An object found by listing; the path is relative to the store."""

    path: str
    num_bytes: int


@dataclass(frozen=True, kw_only=True)
class Dated(Listed):
    """A listed object with the time at which it was written."""

    modified: datetime


class ObjectStore(Protocol):
    """Objects below one location; safe in threads and after a fork, can be pickled.

    Every method repeats requests after transient failures, and raises RemoteError if that does not help.
    """

    @property
    def location(self) -> str:
        """The URL that the user gave, without a slash at the end."""

    @property
    def identity(self) -> str:
        """Identifies the place among all places; part of the key of cached blocks."""

    def get(self, path: str, limit: int) -> bytes:
        """A whole small object.

        Raises:
            AbsentError: the object does not exist.
            CorruptStoreError: the object holds more than `limit` bytes.
        """

    def get_range(self, path: str, start: int, stop: int) -> Span:
        """Bytes `start:stop`, fewer only where the object ends before `stop`.

        Raises:
            AbsentError: the object does not exist.
        """

    def size(self, path: str) -> int | None:
        """Length in bytes, None if the object does not exist."""


class ListedStore(ObjectStore, Protocol):
    """Objects of a place that can be listed."""

    def listed(self, folder: str) -> Iterator[Listed]:
        """Every object below a folder ("" = the whole store)."""

    def names(self, folder: str) -> list[str]:
        """Names of objects and folders directly in a folder ("" = the store)."""


def read_body(read: Callable[[int], bytes], expected: int, deadline: float) -> bytes:
    """The body of an answer, read in pieces so that memory and time are bounded.

    Args:
        read: returns at most n bytes, none at the end.
        expected: announced length in bytes.
        deadline: time.monotonic() value.

    Raises:
        TransientError: the body is not as long as announced, or takes too long.
    """
    pieces, count = [], 0
    while piece := read(PIECE_BYTES):
        pieces.append(piece)
        count += len(piece)
        if count > expected:
            break
        if time.monotonic() > deadline:
            raise TransientError(f"still incomplete after {count} bytes at the deadline")
    if count != expected:
        raise TransientError(f"the answer holds {count} bytes, not {expected}")
    return b"".join(pieces)


def whole(span: Span, limit: int, subject: str) -> bytes:
    """The bytes of a span that was requested to hold a whole object.

    Raises:
        CorruptStoreError: the object is longer than `limit`.
    """
    if span.total > limit:
        raise CorruptStoreError(f"{subject}: holds {span.total} bytes, expected at most {limit}")
    return span.data


def check_content_range(header: str | None, start: int, stop: int) -> tuple[int, int]:
    """Number of bytes of a 206 answer, and the object's size.

    Raises:
        TransientError: the answer holds another range than requested.
    """
    match = _CONTENT_RANGE.fullmatch(header or "")
    if match is None:
        raise TransientError("the answer has no valid Content-Range")
    first, last, total = map(int, match.groups())
    if first != start or last + 1 != min(stop, total):
        raise TransientError(f"the answer holds bytes {first} to {last}, requested {start} to {stop - 1}")
    return last + 1 - first, total
