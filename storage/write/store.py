"""Writing a store: shards in any order by any number of processes, each committed whole or not at all.

writer = open_writer(location, manifest)
for shard in writer.pending_shards():
    with writer.open_shard(shard) as sink:
        for index in writer.planned_samples(shard):
            sink.append(record_of(index))
        sink.commit()
"""

from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from alignkd.storage.errors import StoreError
from alignkd.storage.files.location import as_location, check_location
from alignkd.storage.layouts.registry import get_backend
from alignkd.storage.layouts.rows import RecordCodec
from alignkd.storage.schema.commit_record import commit_name, committed_shards, load_commit
from alignkd.storage.schema.manifest import SCHEMA_VERSION, Manifest
from alignkd.storage.schema.plan import store_plan
from alignkd.storage.write.folder import FolderPlace
from alignkd.storage.write.place import Place, SharedFiles
from alignkd.storage.write.shard import ShardWriter

__all__ = ["ShardWriter", "StoreWriter", "open_writer"]


def open_writer(
    location: Path | str, manifest: Manifest, attachments: Mapping[str, Path | bytes] | None = None
) -> "StoreWriter":
    """Open a store for writing; it is created if it does not exist.

    A store whose manifest equals `manifest` up to the last of its `additions` grows by those.

    Args:
        location: a folder or s3://BUCKET/PREFIX.
        attachments: the files that `manifest.attachments` names, as paths or content; those that the store has already
            may be left out.

    Raises:
        StoreError: a place that cannot be written or holds something else, a store with another manifest, or an
            attachment that is missing or does not have the manifest's checksum.
        RemoteError: the service does not answer, or refuses.
    """
    return StoreWriter(open_place(location), manifest, attachments)


def open_place(location: Path | str) -> Place:
    """The place of a store to write; nothing is created or requested.

    Raises:
        StoreError: a place that cannot be written.
    """
    place = as_location(location)
    check_location(place, writing=True)
    if isinstance(place, Path):
        return FolderPlace(place)
    from alignkd.storage.write.bucket import BucketPlace

    return BucketPlace(place)


class StoreWriter:
    """A store opened for writing; the first writer writes the manifest.

    Attributes:
        place: where the store is written.
        path: the store as the user named it: a folder's path or a URL.
        manifest: settings that decide the store's bytes, as the store has them.
        files: the store's files, for reading.
    """

    def __init__(self, place: Place, manifest: Manifest, attachments: Mapping[str, Path | bytes] | None = None) -> None:
        """Create the store or check the one that exists; see `open_writer`."""
        get_backend(manifest.backend, f"store {place.path}")
        if manifest.schema_version != SCHEMA_VERSION:
            raise StoreError(
                f"store {place.path}: schema {manifest.schema_version} is read and not written; this alignkd writes "
                f"schema {SCHEMA_VERSION}"
            )
        self.place, self.path, self.files = place, place.path, place.files
        self._redone: dict[int, str] = {}
        self.manifest = place.create(manifest, attachments or {})
        self.codec = RecordCodec(self.manifest)
        self._plan = store_plan(self.manifest)

    def pending_shards(self) -> list[int]:
        """Shards of the plan that have no commit record, and those of `redo` that are not done yet; ascending."""
        committed = set(committed_shards(self.files))
        return [shard for shard in range(len(self._plan)) if shard not in committed or self._is_to_redo(shard)]

    def is_pending(self, shard: int) -> bool:
        """Whether one shard is to be written, by the present state of the store."""
        return self.files.size(commit_name(shard)) is None or self._is_to_redo(shard)

    def redo(self, shards: Iterable[int]) -> None:
        """Count committed shards as pending until they have been written again, by this or another writer.

        Until then readers see the old shards.

        Raises:
            StoreError: a commit record that is absent or damaged.
        """
        self._redone |= {shard: self._folder(shard) for shard in shards}

    def _folder(self, shard: int) -> str:
        return load_commit(self.files, shard, self.manifest.shard_hash).folder

    def _is_to_redo(self, shard: int) -> bool:
        """Whether a committed shard is one of `redo` and has not been replaced since."""
        return shard in self._redone and self._folder(shard) == self._redone[shard]

    def planned_samples(self, shard: int) -> NDArray[np.int64]:
        """Data-set indices of a shard in the order in which they must be appended, int64 [samples]."""
        if not 0 <= shard < len(self._plan):
            raise StoreError(f"shard is {shard}, the plan of store {self.path} has 0..{len(self._plan) - 1}")
        return self._plan[shard].copy()

    def shared_folder(self, name: str) -> Path | SharedFiles:
        """A folder of the store for files that are not part of it; see `Place.shared_folder`."""
        return self.place.shared_folder(name)

    def open_shard(self, shard: int) -> ShardWriter:
        """Start a shard in a temporary folder; use as a context manager.

        Raises:
            StoreError: the shard is not in the plan, or committed already.
        """
        planned = self.planned_samples(shard)
        return ShardWriter(self.place, self.codec, shard, planned, replaces=self._replaces(shard))

    def _replaces(self, shard: int) -> bool:
        """Whether a shard to be written is committed; StoreError if it is not to be written."""
        if not self.is_pending(shard):
            raise StoreError(f"shard {shard} of store {self.files.location} is committed already; take a pending one")
        return self.files.size(commit_name(shard)) is not None
