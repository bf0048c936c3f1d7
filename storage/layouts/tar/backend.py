"""WebDataset layout: a shard is one tar of plain files, and an index that makes it randomly readable."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

from alignkd.storage.files.source import StoreFiles
from alignkd.storage.layouts.prediction import PredictedShard, ShardRows
from alignkd.storage.layouts.tar.predict import predicted_shard
from alignkd.storage.layouts.tar.reader import TarSource
from alignkd.storage.layouts.tar.writer import TarSink
from alignkd.storage.schema.columns.shard import Column
from alignkd.storage.schema.commit_record import CommitRecord, shard_name
from alignkd.storage.schema.manifest import Manifest


class WebDatasetBackend:
    """See `layouts.protocol.Backend`; files are named by the shard's number, so that tars may share one folder."""

    files_per_shard = 1
    descriptions: frozenset[str] = frozenset()
    store_files: Mapping[str, bytes] = MappingProxyType({})

    def create(self, folder: Path, shard: int, manifest: Manifest, columns: Sequence[Column]) -> TarSink:
        return TarSink(folder, shard_name(shard), manifest, columns)

    def open(
        self,
        files: StoreFiles,
        folder: str,
        manifest: Manifest,
        columns: Sequence[Column],
        commit: CommitRecord,
    ) -> TarSource:
        return TarSource(files, folder, shard_name(commit.shard), manifest, columns, commit)

    def predicted_bytes(
        self, manifest: Manifest, columns: Sequence[Column], shards: Iterable[ShardRows], *, overhead: bool = True
    ) -> Iterator[PredictedShard]:
        return (predicted_shard(manifest, columns, rows) for rows in shards)
