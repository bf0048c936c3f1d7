"""One shard opened for reading: its tables in memory, its arrays read as records are asked for."""

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from storage.backend import get_backend
from storage.columns import GROUPS, KEYS, OFFSETS, RECORD_FIELDS, RECORDS
from storage.commits import CommitRecord, shard_folder
from storage.manifest import Manifest
from storage.record import Record
from storage.record_codec import RecordCodec

_GROUP_NUMBER = {group: number for number, group in enumerate(GROUPS)}


class OpenShard:
    """Records of one shard.

    Attributes:
        offsets: where each record's rows begin in each group of `GROUPS`, int64 [records + 1, groups].
        records: the columns RECORD_FIELDS of each record, int64 [records, fields].
    """

    def __init__(self, store: Path, manifest: Manifest, codec: RecordCodec, commit: CommitRecord) -> None:
        """Read the tables.

        Raises:
            CorruptStoreError: a table is damaged.
        """
        self.codec, self.commit = codec, commit
        label = f"shard {commit.shard}"
        folder = shard_folder(store, commit.shard)
        backend = get_backend(manifest.backend)
        self.source = backend.open(folder, codec.columns, commit.layouts(), label)
        self.offsets = self.source.read(OFFSETS, 0, commit.num_records + 1)
        self.records = self.source.read(RECORDS, 0, commit.num_records)

    def __len__(self) -> int:
        return len(self.records)

    def rows_of(self, group: str) -> int:
        """Number of rows that the tables promise in a group's arrays."""
        return len(self) if group == "record" else int(self.offsets[-1, _GROUP_NUMBER[group]])

    def keys(self) -> list[str]:
        """The key of each record, hex."""
        return [key.tobytes().hex() for key in self.source.read(KEYS, 0, len(self))]

    def ids(self) -> list[str]:
        """The user's id of each record."""
        text = self.source.read("id", 0, self.rows_of("id")).tobytes()
        ends = self.offsets[:, _GROUP_NUMBER["id"]].tolist()
        return [text[a:b].decode("utf-8", "surrogatepass") for a, b in pairwise(ends)]

    def record(self, number: int) -> Record:
        """The record at a place in the shard; its chunks' checksums are verified.

        Raises:
            CorruptStoreError: naming shard, array and chunk.
        """
        table = dict(zip(RECORD_FIELDS, self.records[number].tolist(), strict=True))
        return self.codec.decode(self._row_reader(number, table), table)

    def _row_reader(self, number: int, table: dict[str, int]) -> Callable[[str], NDArray[Any]]:
        starts, stops = self.offsets[number].tolist(), self.offsets[number + 1].tolist()
        ranges = {group: (starts[place], stops[place]) for group, place in _GROUP_NUMBER.items()}
        ranges["record"] = (number, number + 1)
        ranges["image"] = (table["image_row"], table["image_row"] + 1)
        columns, read = self.codec.by_name, self.source.read

        def read_rows(name: str) -> NDArray[Any]:
            column = columns[name]
            width = table["attention_columns"] if column.variable_width else None
            return read(name, *ranges[column.group], width)

        return read_rows
