"""Writing a store into a bucket: `StoreWriter("s3://BUCKET/PREFIX", manifest)`.

A shard is written and verified in a local staging folder, uploaded to a folder of this writer's own
(`shards/NNNNNNNN-<8 hex>`), and exists when its commit record, which names the folder, is put last with
put-if-absent. Objects cannot be renamed or locked: so a dead writer leaves folders that no record names, which
readers never look at and `gc` removes (`remote_leftovers`).
"""

import tempfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from alignkd.storage.errors import StoreError, disk_errors
from alignkd.storage.files.checksum import file_sha256
from alignkd.storage.files.exclusive import remove_leftovers
from alignkd.storage.files.leftovers import is_dropping
from alignkd.storage.files.source import check_location
from alignkd.storage.layouts.registry import get_backend
from alignkd.storage.layouts.rows import RecordCodec
from alignkd.storage.remote.files import S3Files
from alignkd.storage.remote.objects import AbsentError
from alignkd.storage.remote.s3 import S3Store, UnsupportedError
from alignkd.storage.remote.settings import RemoteSettings, settings_from_environment
from alignkd.storage.remote.upload import (
    Upload,
    keeps_existing,
    put,
    put_and_look,
    put_if_absent,
    remote_sha256,
    upload_all,
)
from alignkd.storage.schema.attachments import ATTACHMENTS, attachment_path
from alignkd.storage.schema.commit_record import COMMITS, SHARDS, CommitRecord, FileEntry, commit_name, load_commit
from alignkd.storage.schema.manifest import FILE_NAME, MAX_FILE_BYTES, Manifest, check_same_manifest, read_manifest
from alignkd.storage.schema.order import shard_plan
from alignkd.storage.schema.sealed_json import seal
from alignkd.storage.write.replace import successor
from alignkd.storage.write.shard import ShardWriter
from alignkd.storage.write.store import StoreWriter


class RemoteStoreWriter(StoreWriter):
    """See `StoreWriter`; what `StoreWriter(URL, ...)` gives."""

    def __init__(
        self,
        path: Path | str,
        manifest: Manifest,
        attachments: Mapping[str, Path | bytes] | None = None,
        *,
        settings: RemoteSettings | None = None,
    ) -> None:
        """Create the store or go on with it.

        Raises:
            StoreError: the location cannot be written, the store has another manifest or is something else, or an
                attachment is missing or not what the manifest says.
            RemoteError: the service does not answer, or refuses.
        """
        settings = settings or settings_from_environment()
        check_location(path, writing=True)
        get_backend(manifest.backend, f"store {path}")
        self.objects = S3Store(str(path), settings)
        self.files = S3Files(self.objects, settings)
        self._redone = {}
        self.path, self.manifest = self.objects.location, manifest  # type: ignore[assignment]  # a URL is no Path
        self.staging = settings.staging_folder
        with disk_errors(f"staging folder {self.staging}"):
            self.staging.mkdir(mode=0o700, parents=True, exist_ok=True)
            remove_leftovers(self.staging)
        _create(self.objects, self.files, manifest, attachments or {})
        stored = self.objects.get(FILE_NAME, MAX_FILE_BYTES)
        self.exclusive = keeps_existing(self.objects, FILE_NAME, stored)
        self.codec = RecordCodec(manifest)
        self._plan = shard_plan(manifest.num_samples, manifest.shard_size, manifest.seed)

    def open_shard(self, shard: int) -> "RemoteShardWriter":
        return RemoteShardWriter(self, shard, self.planned_samples(shard), replaces=self._replaces(shard))


class RemoteShardWriter(ShardWriter):
    """A shard that is completed in the staging folder and published by uploading."""

    def __init__(self, writer: RemoteStoreWriter, shard: int, planned: NDArray[np.int64], *, replaces: bool) -> None:
        super().__init__(writer.staging, writer.codec, shard, planned, replaces=replaces)
        self._name = f"shard {shard} of store {writer.files.location}"
        self._writer = writer

    def _publish(self, commit: CommitRecord) -> CommitRecord:
        objects = self._writer.objects
        ours = successor(commit)
        paths = [f"{ours.path}/{entry.path}" for entry in commit.files]
        try:
            upload_all(objects, [self._upload(path, entry) for path, entry in zip(paths, commit.files, strict=True)])
        except BaseException:
            _delete(objects, paths)
            raise
        # from here on the record may stand even if an error says otherwise: then the upload stays
        record, name = seal(ours.document()), commit_name(self.shard)
        if self.replaces:  # readers that have the predecessor open go on with its objects, until `gc`
            put(objects, name, record)
            return ours
        if self._writer.exclusive:
            if put_if_absent(objects, name, record):
                return ours
            _delete(objects, paths)
        elif put_and_look(objects, name, record):
            return ours
        return load_commit(self._writer.files, self.shard, self.manifest_hash)

    def _upload(self, path: str, entry: FileEntry) -> Upload:
        return Upload(source=self.folder / entry.path, path=path, num_bytes=entry.bytes, sha256=entry.sha256)


def _create(objects: S3Store, files: S3Files, manifest: Manifest, attachments: Mapping[str, Path | bytes]) -> None:
    """Bring attachments and manifest into the bucket, in this order, or check those that are there."""
    if objects.size(FILE_NAME) is None:
        found = set(objects.names("")) - {SHARDS, COMMITS, ATTACHMENTS, FILE_NAME}
        if foreign := sorted(name for name in found if not is_dropping(name)):
            raise StoreError(
                f"{files.location} holds {foreign[0]!r} but no {FILE_NAME}, so it is no store; choose another prefix"
            )
        _put_attachments(objects, manifest, attachments, stands=False)
        data = seal(manifest.model_dump())
        try:
            put_if_absent(objects, FILE_NAME, data)
        except UnsupportedError:
            put_and_look(objects, FILE_NAME, data)
    check_same_manifest(files.location, read_manifest(files), manifest)
    _put_attachments(objects, manifest, attachments, stands=True)


def _put_attachments(objects: S3Store, manifest: Manifest, given: Mapping[str, Path | bytes], *, stands: bool) -> None:
    """Bring every file that the manifest names into the bucket; `stands`: the manifest is there already."""
    named = manifest.attachments
    if unknown := sorted(given.keys() - named.keys()):
        raise StoreError(f"attachment {unknown[0]!r} is given, the manifest names {sorted(named) or 'none'}")
    for name, sha256 in named.items():
        path = attachment_path(name)
        size = objects.size(path)
        if size is not None and (stands or remote_sha256(objects, path, size) == sha256):
            continue
        if size is not None:
            raise StoreError(
                f"{objects.subject(path)}: is not the {name} of this run and belongs to no store; delete it, or "
                "choose another prefix"
            )
        if name not in given:
            raise StoreError(
                f"{objects.subject(path)}: is missing, and the store needs it; give it to the writer again"
            )
        _put_attachment(objects, path, given[name], sha256)


def _put_attachment(objects: S3Store, path: str, source: Path | bytes, sha256: str) -> None:
    with tempfile.TemporaryDirectory(prefix="alignkd-attachment-") as folder:
        if isinstance(source, bytes):
            content, source = source, Path(folder) / "content"
            source.write_bytes(content)
        if (found := file_sha256(source)) != sha256:
            raise StoreError(
                f"attachment {path.rpartition('/')[2]}: sha256 is {found[:12]}, expected {sha256[:12]} by the manifest"
            )
        upload_all(objects, [Upload(source=source, path=path, num_bytes=source.stat().st_size, sha256=sha256)])


def _delete(objects: S3Store, paths: list[str]) -> None:
    """Take an own upload back; what cannot be deleted is a leftover for `gc`."""
    with suppress(StoreError, AbsentError):
        objects.delete(paths)
