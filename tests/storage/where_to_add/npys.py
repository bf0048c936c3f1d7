"""A layout to copy from: one file per shard, in which every column of every record is an .npy array."""

import hashlib
import io
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from alignkd.storage.codecs.base import ReadRows
from alignkd.storage.errors import CorruptStoreError
from alignkd.storage.files.source import StoreFiles
from alignkd.storage.layouts.prediction import PredictedShard, ShardRows, row_bytes
from alignkd.storage.layouts.protocol import WrittenFile, WrittenShard
from alignkd.storage.layouts.tables import ShardTables, tables_from
from alignkd.storage.schema.columns.shard import IMAGE_GROUPS, KEYS, NO_ROW, OFFSETS, RECORDS, Column
from alignkd.storage.schema.commit_record import CommitRecord
from alignkd.storage.schema.manifest import Manifest

FILE = "rows.npys"
HEADER = 128


class NpysSink:
    def __init__(self, folder: Path, columns: Sequence[Column]) -> None:
        self._folder, self._columns, self._content = folder, columns, io.BytesIO()

    def append(self, rows: Mapping[str, NDArray[Any]]) -> None:
        for column in self._columns:
            np.save(self._content, rows.get(column.name, np.empty((0, *column.row_shape), column.dtype)))

    def close(self) -> WrittenShard:
        content = self._content.getvalue()
        with (self._folder / FILE).open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        digest = hashlib.sha256(content).hexdigest()
        return WrittenShard(files=[WrittenFile(path=FILE, num_bytes=len(content), sha256=digest)])

    def abandon(self) -> None:
        self._content.close()


class NpysSource:
    def __init__(self, files: StoreFiles, folder: str, columns: Sequence[Column], commit: CommitRecord) -> None:
        self._files, self._path, self._commit = files, f"{folder}/{FILE}", commit
        self._label, self._groups = files.label(self._path), {column.name: column.group for column in columns}
        content = io.BytesIO(self._verified_content())
        self._records = [{column.name: np.load(content) for column in columns} for _ in range(commit.num_records)]
        ends = [record[OFFSETS] for record in self._records]
        offsets = np.concatenate([np.zeros((1, ends[0].shape[1]), np.int64), *ends])
        records = np.concatenate([record[RECORDS] for record in self._records])
        self._tables = tables_from(columns, offsets, records, self._label)

    def tables(self) -> ShardTables:
        return self._tables

    def keys(self) -> NDArray[Any]:
        return np.concatenate([record[KEYS] for record in self._records])

    def ids(self) -> NDArray[Any]:
        return np.concatenate([record["id"] for record in self._records])

    def texts(self) -> NDArray[Any]:
        return np.concatenate([record["text"] for record in self._records])

    def rows(self, record: int, numbers: dict[str, int], *, whole: bool = True) -> ReadRows:
        source = numbers["image_record"]
        brought = self._records[record if source == NO_ROW else source]
        own = self._records[record]
        return lambda name: (brought if self._groups[name] in IMAGE_GROUPS else own)[name].copy()

    def table_bytes(self) -> int:
        return self._tables.num_bytes

    def hold(self, limit: int) -> int:
        return 0

    def release(self) -> None: ...

    def check_descriptions(self) -> None: ...

    def damage(self, *, headers: bool = True) -> list[str]:
        try:
            self._verified_content()
        except CorruptStoreError as error:
            return [str(error)]
        return []

    def structure_problems(self) -> list[str]:
        return []

    def _verified_content(self) -> bytes:
        (entry,) = self._commit.files
        content = np.empty(entry.bytes, np.uint8)
        self._files.open(self._path, "rows", size=entry.bytes, sha256=entry.sha256).pread_into([content], 0)
        if (found := hashlib.sha256(content).hexdigest()) != entry.sha256:
            raise CorruptStoreError(f"{self._label}: sha256 is {found[:12]}, committed {entry.sha256[:12]}; dump again")
        return content.tobytes()


class NpysBackend:
    files_per_shard = 1
    descriptions: frozenset[str] = frozenset()
    store_files: Mapping[str, bytes] = MappingProxyType({})

    def create(self, folder: Path, shard: int, manifest: Manifest, columns: Sequence[Column]) -> NpysSink:
        return NpysSink(folder, columns)

    def open(
        self,
        files: StoreFiles,
        folder: str,
        manifest: Manifest,
        columns: Sequence[Column],
        commit: CommitRecord,
    ) -> NpysSource:
        return NpysSource(files, folder, columns, commit)

    def predicted_bytes(
        self, manifest: Manifest, columns: Sequence[Column], shards: Iterable[ShardRows], *, overhead: bool = True
    ) -> Iterator[PredictedShard]:
        for rows in shards:
            sizes = {
                column.name: int((HEADER + rows.groups[column.group] * row_bytes(column, rows)).sum())
                for column in columns
            }
            yield PredictedShard(columns=sizes, overhead=0, files={FILE: sum(sizes.values())})
