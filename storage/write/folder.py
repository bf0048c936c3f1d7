"""Writing a store into a folder of a mounted file system."""

from collections.abc import Collection, Mapping
from pathlib import Path

from alignkd.storage.errors import StoreError, disk_errors
from alignkd.storage.files.exclusive import TEMPORARY_PREFIX, create_exclusively, remove_leftovers, replace_durably
from alignkd.storage.files.leftovers import BROWSE, is_dropping
from alignkd.storage.files.local import LocalFiles
from alignkd.storage.layouts.registry import get_backend
from alignkd.storage.schema.attachments import ATTACHMENTS, write_attachments
from alignkd.storage.schema.commit_record import COMMITS, SHARDS, CommitRecord, load_commit
from alignkd.storage.schema.manifest import FILE_NAME, Manifest, read_manifest
from alignkd.storage.write.grow import grow_locked, grown, sealed_manifest
from alignkd.storage.write.publish import publish
from alignkd.storage.write.replace import publish_successor, successor


class FolderPlace:
    """See `alignkd.storage.write.place.Place`; shards are staged in the store's own folder and renamed."""

    def __init__(self, path: Path) -> None:
        self.path = self.staging = path
        self.files = LocalFiles(path)

    def create(self, manifest: Manifest, attachments: Mapping[str, Path | bytes]) -> Manifest:
        with disk_errors(f"store {self.path}"):
            self.path.mkdir(parents=True, exist_ok=True)
            store_files = get_backend(manifest.backend).store_files
            if not (self.path / FILE_NAME).exists():
                self._check_empty(store_files)
                (self.path / SHARDS).mkdir(exist_ok=True)
                (self.path / COMMITS).mkdir(exist_ok=True)
                write_attachments(self.path, manifest, attachments)
                self._write(store_files)
                create_exclusively(self.path / FILE_NAME, sealed_manifest(self.path, manifest), self.path)
            found = self._grown(manifest)
            write_attachments(self.path, manifest, attachments)
            self._write(store_files)
            remove_leftovers(self.path)
            return found

    def publish(self, folder: Path, commit: CommitRecord) -> CommitRecord:
        ours = publish(self.path, folder, commit)
        return commit if ours else load_commit(self.files, commit.shard, commit.manifest_hash)

    def replace(self, folder: Path, commit: CommitRecord) -> CommitRecord:
        ours = successor(commit)
        publish_successor(self.path, folder, ours)
        return ours

    def shared_folder(self, name: str) -> Path:
        return self.path / name

    def _grown(self, asked: Manifest) -> Manifest:
        """The store's manifest, after it was extended by the additions that it lacks."""

        def wanted() -> Manifest:
            return grown(self.path, read_manifest(self.files), asked)

        found = read_manifest(self.files)
        if grown(self.path, found, asked) is found:
            return found
        return grow_locked(self.path / FILE_NAME, self.path, wanted)

    def _write(self, store_files: Mapping[str, bytes]) -> None:
        """Write the files of the layout that are missing or damaged; a store with a manifest has them."""
        for name, content in store_files.items():
            if not (file := self.path / name).exists() or file.read_bytes() != content:
                replace_durably(file, content, self.path)

    def _check_empty(self, store_files: Collection[str]) -> None:
        """Refuse a folder with files that no writer of this store makes."""
        own = (SHARDS, COMMITS, ATTACHMENTS, FILE_NAME, BROWSE, *store_files)
        names = sorted(entry.name for entry in self.path.iterdir())
        foreign = [name for name in names if name not in own and not name.startswith(TEMPORARY_PREFIX)]
        if foreign := [name for name in foreign if not is_dropping(name)]:
            raise StoreError(
                f"{self.path} holds {foreign[0]!r} but no {FILE_NAME}, so it is not a store; choose another path"
            )
