"""What a store in a folder is on the hub: its files, in the order in which they may become visible."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from alignkd.storage.errors import CorruptStoreError, StoreError
from alignkd.storage.files.local import LocalFiles
from alignkd.storage.layouts.registry import get_backend
from alignkd.storage.remote.hub.client import HubFile, git_blob
from alignkd.storage.schema.attachments import attachment_path
from alignkd.storage.schema.commit_record import (
    MAX_COMMIT_BYTES,
    CommitRecord,
    commit_name,
    manifest_and_shards,
    parse_commit,
)
from alignkd.storage.schema.manifest import FILE_NAME, MAX_FILE_BYTES, Manifest, parse_manifest
from alignkd.storage.schema.sealed_json import unseal_bytes
from alignkd.storage.schema.shard_files import missing_or_resized
from alignkd.storage.write.grow import sealed_manifest


@dataclass(frozen=True, kw_only=True)
class PushedFile:
    """One file: path relative to the store, where its bytes are, and the sha256 (hex) that they must have."""

    path: str
    source: Path | bytes
    num_bytes: int
    sha256: str

    def is_at(self, remote: HubFile | None) -> bool:
        """Whether the hub has the same content."""
        if remote is None or remote.num_bytes != self.num_bytes:
            return False
        if remote.sha256 is not None:
            return remote.sha256 == self.sha256
        data = self.source if isinstance(self.source, bytes) else self.source.read_bytes()
        return remote.blob == git_blob(data)


@dataclass(frozen=True, kw_only=True)
class PushedGroup:
    """Files that one hub commit should have together: a shard, or what lies beside the shards."""

    shard: int | None
    files: tuple[PushedFile, ...]


class PushedStore:
    """A store in a folder, read once; a dump that goes on does not change it.

    Attributes:
        folder: where it lies.
        manifest: its manifest.
        commits: its commit records.
    """

    def __init__(self, folder: Path) -> None:
        """Read manifest and commit records.

        Raises:
            StoreError: not a store, no shard, or a file that is missing or has another size.
        """
        self.folder = folder
        self._files = files = LocalFiles(folder)
        # what is sent is what was parsed, as a dump may replace the files. An addition is in the manifest before its
        # shards are committed, so the manifest is read after they were listed
        _, shards = manifest_and_shards(files)
        content = files.read(FILE_NAME, MAX_FILE_BYTES)
        where = files.label(FILE_NAME)
        self.manifest = parse_manifest(unseal_bytes(content, where), where)
        names = [commit_name(shard) for shard in shards]
        records = dict(zip(names, files.read_many(names, MAX_COMMIT_BYTES), strict=True))
        self.commits: Sequence[CommitRecord] = [
            parse_commit(records[name], files.label(name), shard, self.manifest.shard_hash)
            for name, shard in zip(names, shards, strict=True)
        ]
        if not self.commits:
            raise StoreError(f"store {folder}: no shard is committed yet; push it when `alignkd dump` has written some")
        for commit in self.commits:
            if problems := missing_or_resized(files, commit):
                raise CorruptStoreError(f"{problems[0]}; nothing is pushed, see `alignkd shards verify {folder}`")
        self._small = {FILE_NAME: self._public_manifest(content), **records}

    def _public_manifest(self, content: bytes) -> bytes:
        """The file without the paths of this machine, where the dump found images and teacher."""
        if self.manifest.read_from is None:
            return content
        return sealed_manifest(self.folder, self.manifest.changed(read_from=None))

    @property
    def is_whole(self) -> bool:
        """Whether all shards of the plan are committed."""
        return len(self.commits) == self.manifest.num_shards

    def body(self) -> Iterator[PushedGroup]:
        """What readers look at only through the files of `heads`: these go first."""
        beside = [
            PushedFile(path=path, source=content, num_bytes=len(content), sha256=hashlib.sha256(content).hexdigest())
            for path, content in _layout_files(self.manifest).items()
        ]
        for name, sha256 in self.manifest.attachments.items():
            source = self.folder / attachment_path(name)
            size = self._files.size(attachment_path(name))
            if size is None:
                raise CorruptStoreError(f"{source}: {self._files.absent}; restore it from a copy, nothing is pushed")
            beside.append(PushedFile(path=attachment_path(name), source=source, num_bytes=size, sha256=sha256))
        yield PushedGroup(shard=None, files=tuple(beside))
        for commit in self.commits:
            yield PushedGroup(shard=commit.shard, files=tuple(self._shard_files(commit)))

    def heads(self) -> list[PushedFile]:
        """The manifest and the commit records, which make a store of the rest."""
        return [
            PushedFile(path=path, source=content, num_bytes=len(content), sha256=hashlib.sha256(content).hexdigest())
            for path, content in self._small.items()
        ]

    def _shard_files(self, commit: CommitRecord) -> Iterator[PushedFile]:
        for entry in commit.files:
            path = f"{commit.path}/{entry.path}"
            yield PushedFile(path=path, source=self.folder / path, num_bytes=entry.bytes, sha256=entry.sha256)


def _layout_files(manifest: Manifest) -> dict[str, bytes]:
    """Files that lead other software to the shards, which stores of schema 2 do not have."""
    return dict(get_backend(manifest.backend).store_files) if manifest.schema_version > 2 else {}
