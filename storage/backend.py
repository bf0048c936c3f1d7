"""What a physical layout must offer. zarr is the first; a tar layout is one more class.

A shard is a folder of files. A sink is told one record at a time: for each column of `columns.py` the rows
that this record adds (none for a column it does not name). A source gives row ranges back.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from numpy.typing import NDArray

from storage.columns import Column
from storage.errors import StoreError
from storage.sharding_layout import ArrayLayout


@dataclass(frozen=True, kw_only=True)
class WrittenFile:
    """A finished, fsynced file of a shard; the path is relative to the shard's folder."""

    path: str
    num_bytes: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class WrittenShard:
    """What a sink put into its folder."""

    arrays: dict[str, ArrayLayout]
    files: list[WrittenFile]


class ShardSink(Protocol):
    """Takes the records of one shard, in order, in bounded memory."""

    def append(self, rows: Mapping[str, NDArray[Any]]) -> None:
        """Add one record's rows of each column."""

    def close(self) -> WrittenShard:
        """Complete and fsync every file."""

    def abandon(self) -> None:
        """Give resources back; the caller removes the folder."""


class ShardSource(Protocol):
    """Gives back the rows of one shard; safe in threads and after a fork."""

    def read(self, column: str, start: int, stop: int, width: int | None = None) -> NDArray[Any]:
        """Rows `start:stop` of a column, verified; the first `width` columns where the width varies.

        Raises:
            CorruptStoreError: naming shard, array and chunk.
        """


class Backend(Protocol):
    """One physical layout."""

    def create(self, folder: Path, columns: Sequence[Column]) -> ShardSink:
        """Start a shard in an empty folder."""

    def open(
        self, folder: Path, columns: Sequence[Column], arrays: Mapping[str, ArrayLayout], label: str
    ) -> ShardSource:
        """Open a shard whose arrays are known from its commit record; `label` names it in errors."""

    def check(self, folder: Path, columns: Sequence[Column], arrays: Mapping[str, ArrayLayout]) -> list[str]:
        """What is wrong with the layout's own descriptions, in words; empty if nothing is."""


def get_backend(name: str) -> Backend:
    """The backend of that name.

    Raises:
        StoreError: there is none.
    """
    from storage.zarr_backend import ZarrBackend  # late: a backend imports this module's types

    if name != "zarr":
        raise StoreError(f"backend is {name!r}, expected zarr")
    return ZarrBackend()
