"""One float target of a record to rows of columns and back."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from alignkd.storage.codecs import get_codec
from alignkd.storage.codecs.base import Parts, ReadRows, part_column
from alignkd.storage.codecs.settings import FROM_ALL, NOT_STORED
from alignkd.storage.errors import StoreError
from alignkd.storage.logits.pass_through import decoded
from alignkd.storage.record.record import EncodedArray, Target

Rows = dict[str, NDArray[Any]]


class StoredTarget:
    """Reads a float target; made once, because names and codecs are the same for every record.

    Attributes:
        codec: name of the codec; `none`, `stem` and `from_all` have no columns.
        shared: parts that belong to all rows at once, each with a single row in the store.
    """

    def __init__(self, codec: str, field: str) -> None:
        self.codec, self.field = codec, field
        stored = codec not in (FROM_ALL, *NOT_STORED)
        self.shared = get_codec(codec).shared_parts if stored else frozenset[str]()
        self._columns = [(part, part_column(field, part)) for part in get_codec(codec).part_names] if stored else []

    def read(self, read: ReadRows) -> Parts:
        """The rows of each part."""
        return {part: read(column) for part, column in self._columns}

    def read_whole(self, read: ReadRows) -> Parts:
        """The same, where the record has one row of the parts that its rows share: without the axis of that row."""
        return {part: read(column)[0] if part in self.shared else read(column) for part, column in self._columns}

    def put(self, parts: Parts, rows: Rows) -> None:
        """Add the rows of the parts, in the form of `read`."""
        for part, stored in parts.items():
            rows[part_column(self.field, part)] = stored

    def put_whole(self, parts: Parts, rows: Rows) -> None:
        """Add the rows of the parts, in the form of `read_whole`."""
        self.put({part: stored[None] if part in self.shared else stored for part, stored in parts.items()}, rows)

    def decode(self, parts: Parts) -> Target:
        """The target with these parts."""
        return decoded(self.codec, parts)


def expect(field: str, values: NDArray[Any] | EncodedArray, shape: tuple[int, ...]) -> None:
    """Refuse values of another shape.

    Raises:
        StoreError: naming the field and both shapes.
    """
    if values.shape != shape:
        raise StoreError(f"{field} has shape {values.shape}, the store expects {shape}")


def text_rows(text: str) -> NDArray[np.uint8]:
    """A text as rows of one byte."""
    # some data sets contain lone surrogates; the store keeps them
    return np.frombuffer(text.encode("utf-8", "surrogatepass"), np.uint8)


def text_of(rows: NDArray[np.uint8]) -> str:
    """The inverse of `text_rows`."""
    return rows.tobytes().decode("utf-8", "surrogatepass")
