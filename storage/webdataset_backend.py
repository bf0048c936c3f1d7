"""WebDataset layout: a shard is one tar of plain files, and an index that makes it randomly readable."""

from collections.abc import Sequence
from pathlib import Path

from storage.backend import Verified
from storage.byte_files import StoreFiles
from storage.columns import Column
from storage.commits import CommitRecord, shard_name
from storage.manifest import Manifest
from storage.tar_source import TarSource
from storage.tar_writer import TarSink


class WebDatasetBackend:
    """See `storage.backend.Backend`; file names follow the shard's number, so that tars can be moved together."""

    files_per_shard = 1
    descriptions: frozenset[str] = frozenset()

    def create(self, folder: Path, shard: int, manifest: Manifest, columns: Sequence[Column]) -> TarSink:
        return TarSink(folder, shard_name(shard), manifest, columns)

    def open(
        self,
        files: StoreFiles,
        folder: str,
        manifest: Manifest,
        columns: Sequence[Column],
        commit: CommitRecord,
        verified: Verified | None = None,
    ) -> TarSource:
        return TarSource(files, folder, shard_name(commit.shard), manifest, columns, commit, verified)
