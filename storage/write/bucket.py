"""Writing a store into a bucket.

A shard is written and verified in the local staging folder and uploaded to a folder of this writer's own
(`shards/NNNNNNNN-<8 hex>`). It exists when its commit record, which names the folder, is put last, on condition that
there is none. Objects cannot be renamed or locked, so a killed writer leaves a folder that no record names: readers
never look at it, and `gc` removes it (`alignkd.storage.remote.s3.leftovers`).
"""

from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from alignkd.disk.temporary import temporary_folder
from alignkd.storage.errors import StoreError, disk_errors
from alignkd.storage.files.checksum import file_sha256
from alignkd.storage.files.exclusive import remove_leftovers
from alignkd.storage.files.leftovers import is_dropping
from alignkd.storage.layouts.registry import get_backend
from alignkd.storage.remote.files import ListedFiles
from alignkd.storage.remote.objects import AbsentError
from alignkd.storage.remote.s3.store import S3Store
from alignkd.storage.remote.s3.upload import (
    Upload,
    check_conditional_puts,
    etag,
    put,
    put_if_absent,
    put_if_unchanged,
    remote_sha256,
    upload_all,
)
from alignkd.storage.remote.settings import RemoteSettings, settings_from_environment
from alignkd.storage.schema.attachments import ATTACHMENTS, attachment_path, check_named
from alignkd.storage.schema.commit_record import COMMITS, SHARDS, CommitRecord, commit_name, load_commit
from alignkd.storage.schema.manifest import FILE_NAME, MAX_FILE_BYTES, Manifest, read_manifest
from alignkd.storage.schema.sealed_json import seal
from alignkd.storage.write.grow import grown, sealed_manifest
from alignkd.storage.write.replace import successor

ATTEMPTS_TO_GROW = 5


class BucketPlace:
    """See `alignkd.storage.write.place.Place`."""

    def __init__(self, location: str, settings: RemoteSettings | None = None) -> None:
        """Raises StoreError for an invalid URL; sends no request."""
        settings = settings or settings_from_environment()
        self.objects = S3Store(location, settings)
        self.path, self.staging = self.objects.location, settings.staging_folder
        self.files = ListedFiles(self.objects, settings)

    def create(self, manifest: Manifest, attachments: Mapping[str, Path | bytes]) -> Manifest:
        with disk_errors(f"staging folder {self.staging}"):
            self.staging.mkdir(mode=0o700, parents=True, exist_ok=True)
            remove_leftovers(self.staging)
        store_files = get_backend(manifest.backend).store_files
        if self.objects.size(FILE_NAME) is None:
            self._check_empty(store_files)
            self._put_attachments(manifest, attachments, has_manifest=False)
            self._put(store_files)
            put_if_absent(self.objects, FILE_NAME, sealed_manifest(self.path, manifest))
        found = self._grown(manifest)
        self._put_attachments(manifest, attachments, has_manifest=True)
        self._put(store_files)
        check_conditional_puts(self.objects, FILE_NAME, self.objects.get(FILE_NAME, MAX_FILE_BYTES))
        return found

    def publish(self, folder: Path, commit: CommitRecord) -> CommitRecord:
        ours = self._uploaded(folder, commit)
        # from here on the record may exist even if an error is raised: then the upload stays
        if put_if_absent(self.objects, commit_name(commit.shard), seal(ours.document())):
            return ours
        self._take_back(ours)
        return load_commit(self.files, commit.shard, commit.manifest_hash)

    def replace(self, folder: Path, commit: CommitRecord) -> CommitRecord:
        """Readers that have the predecessor open continue with its objects, until `gc` removes them."""
        ours = self._uploaded(folder, commit)
        put(self.objects, commit_name(commit.shard), seal(ours.document()))
        return ours

    def shared_folder(self, name: str) -> "BucketFolder":
        return BucketFolder(self.objects, name)

    def _grown(self, asked: Manifest) -> Manifest:
        """The store's manifest, after it was extended by the additions that it lacks."""
        for _ in range(ATTEMPTS_TO_GROW):
            tag = etag(self.objects, FILE_NAME)  # before the content, which may be replaced in between
            found = read_manifest(self.files)
            wanted = grown(self.path, found, asked)
            content = sealed_manifest(self.path, wanted)
            if wanted is found or put_if_unchanged(self.objects, FILE_NAME, content, tag):
                return wanted
        raise StoreError(f"store {self.path}: other processes add data to it at the same time; run the command again")

    def _put(self, store_files: Mapping[str, bytes]) -> None:
        """Put the files of the layout that are missing; a store with a manifest has them."""
        for name, content in store_files.items():
            if self.objects.size(name) != len(content):
                put(self.objects, name, content)

    def _check_empty(self, store_files: Collection[str]) -> None:
        """Refuse a prefix with objects that no writer of this store makes."""
        found = set(self.objects.names("")) - {SHARDS, COMMITS, ATTACHMENTS, FILE_NAME, *store_files}
        if foreign := sorted(name for name in found if not is_dropping(name)):
            raise StoreError(
                f"{self.path} holds {foreign[0]!r} but no {FILE_NAME}, so it is not a store; choose another prefix"
            )

    def _uploaded(self, folder: Path, commit: CommitRecord) -> CommitRecord:
        """Upload a shard into a folder of its own; the record that names it."""
        ours = successor(commit)
        uploads = [
            Upload(
                source=folder / entry.path,
                path=f"{ours.path}/{entry.path}",
                num_bytes=entry.bytes,
                sha256=entry.sha256,
            )
            for entry in commit.files
        ]
        try:
            upload_all(self.objects, uploads)
        except BaseException:
            self._take_back(ours)
            raise
        return ours

    def _take_back(self, ours: CommitRecord) -> None:
        """Delete an own upload; what cannot be deleted is a leftover for `gc`."""
        with suppress(StoreError, AbsentError):
            self.objects.delete([f"{ours.path}/{entry.path}" for entry in ours.files])

    def _put_attachments(self, manifest: Manifest, given: Mapping[str, Path | bytes], *, has_manifest: bool) -> None:
        """Upload every file that the manifest names; with a manifest in the bucket those that exist are right."""
        check_named(manifest, given)
        for name, sha256 in manifest.attachments.items():
            path = attachment_path(name)
            size = self.objects.size(path)
            if size is not None and (has_manifest or remote_sha256(self.objects, path, size) == sha256):
                continue
            if size is not None:
                raise StoreError(
                    f"{self.objects.subject(path)}: is not the {name} of this run and belongs to no store; delete it, "
                    "or choose another prefix"
                )
            if name not in given:
                raise StoreError(
                    f"{self.objects.subject(path)}: is missing, and the store needs it; give it to the writer again"
                )
            _put_attachment(self.objects, path, given[name], sha256)


class BucketFolder:
    """See `alignkd.storage.write.place.SharedFiles`."""

    def __init__(self, objects: S3Store, folder: str) -> None:
        self._objects, self._folder = objects, folder

    def put(self, name: str, data: bytes) -> None:
        put(self._objects, self._path(name), data)

    def get(self, name: str, limit: int) -> bytes | None:
        try:
            return self._objects.get(self._path(name), limit)
        except AbsentError:
            return None

    def names(self) -> list[str]:
        return self._objects.names(self._folder)

    def delete(self, names: Sequence[str]) -> None:
        self._objects.delete([self._path(name) for name in names])

    def _path(self, name: str) -> str:
        return f"{self._folder}/{name}"


def _put_attachment(objects: S3Store, path: str, source: Path | bytes, sha256: str) -> None:
    with temporary_folder("alignkd-attachment-") as folder:
        if isinstance(source, bytes):
            content, source = source, folder / "content"
            source.write_bytes(content)
        if (found := file_sha256(source)) != sha256:
            raise StoreError(
                f"attachment {path.rpartition('/')[2]}: sha256 is {found[:12]}, expected {sha256[:12]} by the manifest"
            )
        upload_all(objects, [Upload(source=source, path=path, num_bytes=source.stat().st_size, sha256=sha256)])
