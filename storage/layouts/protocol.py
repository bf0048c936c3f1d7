"""What a physical layout must offer: a class like `Backend` and a line in `registry.py`.

A shard is a folder of files. A sink takes one record at a time: the rows that the record adds to each column of
`schema/columns/shard.py` (no rows for a column that is absent), including the rows of the shard's tables. A source
gives a record's rows back.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from numpy.typing import NDArray

from alignkd.storage.codecs.base import ReadRows
from alignkd.storage.files.source import StoreFiles
from alignkd.storage.layouts.prediction import PredictedShard, ShardRows
from alignkd.storage.layouts.tables import ShardTables
from alignkd.storage.schema.columns.shard import Column
from alignkd.storage.schema.commit_record import ArrayLayout, CommitRecord
from alignkd.storage.schema.manifest import Manifest


@dataclass(frozen=True, kw_only=True)
class WrittenFile:
    """A finished, fsynced file of a shard; the path is relative to the shard's folder."""

    path: str
    num_bytes: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class WrittenShard:
    """The files that a sink wrote; `arrays` is empty where files describe themselves."""

    files: list[WrittenFile]
    arrays: dict[str, ArrayLayout] = field(default_factory=dict)


class ShardSink(Protocol):
    """Writes the records of one shard, in order, in bounded memory."""

    def append(self, rows: Mapping[str, NDArray[Any]]) -> None:
        """Add one record: its rows of each column and of the tables `offsets` (where its rows end) and `records`.

        Raises:
            OSError: the disk is full.
        """

    def close(self) -> WrittenShard:
        """Complete and fsync every file."""

    def abandon(self) -> None:
        """Release resources; the caller removes the folder."""


class ShardSource(Protocol):
    """Reads the records of one shard; safe in threads and after a fork."""

    def tables(self) -> ShardTables:
        """The shard's tables, checked.

        Raises:
            CorruptStoreError: damaged, or not of this shard.
        """

    def keys(self) -> NDArray[Any]:
        """The key of each record, uint8 [records, 32]."""

    def ids(self) -> NDArray[Any]:
        """The ids of all records as concatenated UTF-8, uint8 [bytes]; `tables().ends("id")` separates them."""

    def texts(self) -> NDArray[Any]:
        """The column `text` of all records, verified, uint8 [bytes]; `tables().ends("text")` separates them.

        Raises:
            CorruptStoreError: names the file and the place.
        """

    def rows(self, record: int, numbers: dict[str, int], *, whole: bool = True) -> ReadRows:
        """Column -> the record's rows of it, verified, in new memory; `numbers` is the record's row of `records`.

        Args:
            whole: most columns will be read. False: few will be, so that the others need not be fetched.

        Raises:
            CorruptStoreError: names the file and the place; raised now or when a column is read.
        """

    def table_bytes(self) -> int:
        """Approximate bytes of memory that stay in use after `release`."""

    def hold(self, limit: int) -> int:
        """Keep small columns in memory, verified, because many records will be read; returns the bytes kept.

        Args:
            limit: most bytes to keep.

        Raises:
            CorruptStoreError: names the file and the place.
        """

    def release(self) -> None:
        """Close the files and free what `hold` keeps; tables stay, and the next read opens the files again."""

    def check_descriptions(self) -> None:
        """Verify the files that describe the shard to other software, and bytes that `rows` never reads; cheap.

        Raises:
            CorruptStoreError: they differ from the committed ones.
        """

    def damage(self, *, headers: bool = True) -> list[str]:
        """Read every byte again, compare checksums, and describe each problem.

        Args:
            headers: also compare the bytes between arrays, if the layout has any, with those that a writer writes.
        """

    def structure_problems(self) -> list[str]:
        """Describe each contradiction between the layout and the tables."""


class Backend(Protocol):
    """One physical layout.

    Attributes:
        files_per_shard: most file descriptors of an open shard.
        descriptions: names of files that other software writes; two good copies of a shard may differ in them.
        store_files: path relative to the store -> content of the files that lead other software from the store to its
            shards. No reader of this package needs them.
    """

    files_per_shard: int
    descriptions: frozenset[str]
    store_files: Mapping[str, bytes]

    def create(self, folder: Path, shard: int, manifest: Manifest, columns: Sequence[Column]) -> ShardSink:
        """Start a shard in an empty folder."""

    def open(
        self,
        files: StoreFiles,
        folder: str,
        manifest: Manifest,
        columns: Sequence[Column],
        commit: CommitRecord,
    ) -> ShardSource:
        """Open a shard.

        Raises:
            CorruptStoreError: its index or description is damaged.
        """

    def predicted_bytes(
        self, manifest: Manifest, columns: Sequence[Column], shards: Iterable[ShardRows], *, overhead: bool = True
    ) -> Iterator[PredictedShard]:
        """Predict the files of each shard without writing data.

        Args:
            overhead: False allows a layout to leave out files of `overhead` that take time to predict.
        """
