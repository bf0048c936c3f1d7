"""Writing a store: shards in any order by any number of processes, each committed whole or not at all.

writer = StoreWriter(path, manifest)
for shard in writer.pending_shards():
    with writer.open_shard(shard) as sink:
        for index in writer.planned_samples(shard):
            sink.append(record_of(index))
        sink.commit()
"""

from collections.abc import Iterable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from alignkd.storage.errors import StoreError, disk_errors
from alignkd.storage.files.exclusive import TEMPORARY_PREFIX, create_exclusively, remove_leftovers
from alignkd.storage.files.leftovers import is_dropping
from alignkd.storage.files.source import LocalFiles, StoreFiles, as_location
from alignkd.storage.layouts.registry import get_backend
from alignkd.storage.layouts.rows import RecordCodec
from alignkd.storage.schema.attachments import ATTACHMENTS, write_attachments
from alignkd.storage.schema.commit_record import COMMITS, SHARDS, commit_name, committed_shards, load_commit
from alignkd.storage.schema.manifest import FILE_NAME, Manifest, check_same_manifest, load_manifest
from alignkd.storage.schema.order import shard_plan
from alignkd.storage.schema.sealed_json import seal
from alignkd.storage.write.shard import ShardWriter

__all__ = ["ShardWriter", "StoreWriter"]


class StoreWriter:
    """A store opened for writing; the manifest is written by whoever comes first.

    A URL in place of the path gives the writer of distant stores, which has the same methods.
    """

    def __new__(cls, path: Path | str, *arguments: Any, **options: Any) -> Self:
        if cls is StoreWriter and isinstance(as_location(path), str):
            distant = import_module("alignkd.storage.remote.writer").RemoteStoreWriter
            made: Self = object.__new__(distant)
            return made
        return object.__new__(cls)

    def __init__(
        self, path: Path | str, manifest: Manifest, attachments: Mapping[str, Path | bytes] | None = None
    ) -> None:
        """Create the store or go on with it, and clear away what dead writers left.

        Args:
            attachments: the files that `manifest.attachments` names, as paths or content; those that the store holds
                already may be left out.

        Raises:
            StoreError: the store has another manifest, the folder is something else, or an attachment is missing
                or not what the manifest says.
        """
        get_backend(manifest.backend, f"store {path}")
        self.path, self.manifest = Path(path), manifest
        self.files: StoreFiles = LocalFiles(self.path)
        self._redone: dict[int, str] = {}
        with disk_errors(f"store {self.path}"):
            _create(self.path, manifest, attachments or {})
            remove_leftovers(self.path)
        self.codec = RecordCodec(manifest)
        self._plan = shard_plan(manifest.num_samples, manifest.shard_size, manifest.seed)

    def pending_shards(self) -> list[int]:
        """Shards of the plan that are to be written, rising: those without a commit record, and those of `redo`."""
        committed = set(committed_shards(self.files))
        return [shard for shard in range(len(self._plan)) if shard not in committed or self._is_to_redo(shard)]

    def is_pending(self, shard: int) -> bool:
        """Whether one shard is to be written, as things stand now."""
        return self.files.size(commit_name(shard)) is None or self._is_to_redo(shard)

    def redo(self, shards: Iterable[int]) -> None:
        """Take committed shards for pending until somebody has done them again.

        Until then readers see them as they are. One that was committed by somebody else since this call counts as done.

        Raises:
            StoreError: a commit record that is absent or cannot be right.
        """
        self._redone |= {shard: self._folder(shard) for shard in shards}

    def _folder(self, shard: int) -> str:
        return load_commit(self.files, shard, self.manifest.manifest_hash()).folder

    def _is_to_redo(self, shard: int) -> bool:
        """Whether a committed shard is one of `redo` and still the one that was to be done again."""
        return shard in self._redone and self._folder(shard) == self._redone[shard]

    def planned_samples(self, shard: int) -> NDArray[np.int64]:
        """Data-set indices of a shard in the order in which they must be appended, int64 [samples]."""
        if not 0 <= shard < len(self._plan):
            raise StoreError(f"shard is {shard}, the plan of store {self.path} has 0..{len(self._plan) - 1}")
        return self._plan[shard].copy()

    def open_shard(self, shard: int) -> ShardWriter:
        """Start a shard in a temporary folder; use as a context manager.

        Raises:
            StoreError: the shard is not in the plan, or committed already.
        """
        planned = self.planned_samples(shard)
        return ShardWriter(self.path, self.codec, shard, planned, replaces=self._replaces(shard))

    def _replaces(self, shard: int) -> bool:
        """Whether a shard to be written is committed; StoreError if it is not to be written."""
        if not self.is_pending(shard):
            raise StoreError(f"shard {shard} of store {self.files.location} is committed already; take a pending one")
        return self.files.size(commit_name(shard)) is not None


def _create(path: Path, manifest: Manifest, attachments: Mapping[str, Path | bytes]) -> None:
    """Make the store's folders, attachments and manifest, in this order, or check those that are there."""
    path.mkdir(parents=True, exist_ok=True)
    if not (path / FILE_NAME).exists():
        foreign = [
            entry.name
            for entry in path.iterdir()
            if entry.name not in (SHARDS, COMMITS, ATTACHMENTS, FILE_NAME)
            and not entry.name.startswith(TEMPORARY_PREFIX)
            and not is_dropping(entry.name)
        ]
        if foreign:
            raise StoreError(
                f"{path} holds {sorted(foreign)[0]!r} but no {FILE_NAME}, so it is no store; choose another path"
            )
        (path / SHARDS).mkdir(exist_ok=True)
        (path / COMMITS).mkdir(exist_ok=True)
        write_attachments(path, manifest, attachments)
        create_exclusively(path / FILE_NAME, seal(manifest.model_dump()), path)
    check_same_manifest(path, load_manifest(path), manifest)
    write_attachments(path, manifest, attachments)
