"""zarr v3 layout: a shard is a zarr group, a column an array in it, an array one sharding file.

Data files are written and read here without zarr-python, which is 10 to 60 times slower for ragged rows. zarr-python
makes the descriptions (`zarr.json`), so that any zarr reader opens the folder. The group's attributes hold the crc32c
of every chunk: the checksums inside a data file show that it is undamaged, but not that it belongs to this shard.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from alignkd.storage.files.background import Background
from alignkd.storage.files.checksum import file_sha256
from alignkd.storage.files.exclusive import fsync_all
from alignkd.storage.files.source import StoreFiles
from alignkd.storage.layouts.prediction import PredictedShard, ShardRows
from alignkd.storage.layouts.protocol import WrittenFile, WrittenShard
from alignkd.storage.layouts.zarr.chunk_file import EMPTY_GROUP, METADATA, data_file
from alignkd.storage.layouts.zarr.chunk_writer import ShardingFileWriter
from alignkd.storage.layouts.zarr.predict import predicted_shards
from alignkd.storage.layouts.zarr.reader import ZarrSource
from alignkd.storage.schema.columns.shard import OFFSETS, Column, describe_targets, stored_targets
from alignkd.storage.schema.commit_record import CommitRecord
from alignkd.storage.schema.manifest import Manifest


class ZarrSink:
    """Writes every column of a shard side by side."""

    def __init__(
        self,
        folder: Path,
        columns: Sequence[Column],
        described: Mapping[str, Mapping[str, Any]] | None = None,
        targets: Sequence[Mapping[str, Any]] = (),
    ) -> None:
        """`described` and `targets`: as for `write_metadata`."""
        self.folder, self.columns, self._described, self._targets = folder, columns, described or {}, targets
        self._files: dict[str, ShardingFileWriter] = {}
        self._background = Background()
        for column in columns:
            (folder / column.name).mkdir()
            path = folder / data_file(column)
            self._files[column.name] = ShardingFileWriter(
                path, column.dtype, column.chunk_shape, column.variable_width, self._background
            )
            if column.name == OFFSETS:
                self._files[OFFSETS].append(np.zeros((1, *column.row_shape), column.dtype))

    def append(self, rows: Mapping[str, NDArray[Any]]) -> None:
        for name, values in rows.items():
            self._files[name].append(values)

    def close(self) -> WrittenShard:
        from alignkd.storage.layouts.zarr.metadata import write_metadata  # late: importing zarr takes 0.2 s

        arrays = {name: file.close() for name, file in self._files.items()}
        self._background.end()
        checksums = {name: file.checksums for name, file in self._files.items()}
        write_metadata(self.folder, self.columns, arrays, checksums, self._described, self._targets)
        return WrittenShard(arrays=arrays, files=self._written_files())

    def abandon(self) -> None:
        self._background.end()
        for file in self._files.values():
            file.release()

    def _written_files(self) -> list[WrittenFile]:
        files = [_described(self.folder, METADATA)]
        for column in self.columns:
            files.append(_described(self.folder, f"{column.name}/{METADATA}"))
            data = self._files[column.name]
            if data.num_bytes:
                path = data_file(column)
                files.append(WrittenFile(path=path, num_bytes=data.num_bytes, sha256=data.sha256))
        fsync_all([self.folder / file.path for file in files])
        fsync_all([self.folder, *(self.folder / column.name for column in self.columns)])
        return files


class ZarrBackend:
    """See `alignkd.storage.layouts.protocol.Backend`."""

    files_per_shard = 24
    descriptions = frozenset({METADATA})
    # groups without arrays, so that `zarr.open_group(STORE)` leads to the shards
    store_files: Mapping[str, bytes] = MappingProxyType(dict.fromkeys((METADATA, f"shards/{METADATA}"), EMPTY_GROUP))

    def create(self, folder: Path, shard: int, manifest: Manifest, columns: Sequence[Column]) -> ZarrSink:
        return ZarrSink(folder, columns, describe_targets(manifest), stored_targets(manifest))

    def open(
        self,
        files: StoreFiles,
        folder: str,
        manifest: Manifest,
        columns: Sequence[Column],
        commit: CommitRecord,
    ) -> ZarrSource:
        return ZarrSource(files, folder, columns, commit)

    def predicted_bytes(
        self, manifest: Manifest, columns: Sequence[Column], shards: Iterable[ShardRows], *, overhead: bool = True
    ) -> Iterator[PredictedShard]:
        return predicted_shards(manifest, columns, shards, descriptions=overhead)


def _described(folder: Path, path: str) -> WrittenFile:
    """Size and checksum of a file that zarr-python wrote."""
    size = (folder / path).stat().st_size
    return WrittenFile(path=path, num_bytes=size, sha256=file_sha256(folder / path))
