"""Where a store is written: a folder (`folder.py`) or a bucket (`bucket.py`)."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

from alignkd.storage.files.source import StoreFiles
from alignkd.storage.schema.commit_record import CommitRecord
from alignkd.storage.schema.manifest import Manifest


class SharedFiles(Protocol):
    """Small files in one folder of a store in a bucket, for processes that exchange their state."""

    def put(self, name: str, data: bytes) -> None:
        """Write a file, in place of an older one; raises StoreError if the service refuses."""

    def get(self, name: str, limit: int) -> bytes | None:
        """All bytes of a file, None if it does not exist; raises StoreError if it holds more than `limit` bytes."""

    def names(self) -> list[str]:
        """Names of all files, in any order."""

    def delete(self, names: Sequence[str]) -> None:
        """Delete files; those that do not exist count as deleted."""


class Place(Protocol):
    """One store that is being written. What is published is whole or absent, whenever the process is killed."""

    @property
    def path(self) -> Path | str:
        """The store as the user named it: a folder's path or a URL."""

    @property
    def files(self) -> StoreFiles:
        """The store's files, for reading."""

    @property
    def staging(self) -> Path:
        """Local folder in which a shard is written, in a temporary folder, before it is published."""

    def create(self, manifest: Manifest, attachments: Mapping[str, Path | bytes]) -> Manifest:
        """Create the store, or check the one that exists; remove local temporary files of dead writers.

        Additions that the store's manifest lacks are added to it.

        Returns:
            The store's manifest, equal to `manifest` but for what identifies nothing.

        Args:
            attachments: name -> path or content; those that the store has already may be missing.

        Raises:
            StoreError: the store has another manifest, the place holds something else, or an attachment is missing
                or does not have the manifest's checksum.
        """

    def publish(self, folder: Path, commit: CommitRecord) -> CommitRecord:
        """Make a verified shard part of the store, unless another writer has committed it already.

        Args:
            folder: the shard's temporary folder in `staging`; the caller holds its lock.

        Returns:
            The commit record in the store: `commit`, perhaps with another folder, or that of the other writer.

        Raises:
            StoreError: another writer holds the place and does not commit.
        """

    def replace(self, folder: Path, commit: CommitRecord) -> CommitRecord:
        """Put a verified shard in the place of the committed one, in one step; as `publish`."""

    def shared_folder(self, name: str) -> Path | SharedFiles:
        """A folder of the store for files that are not part of it; a Path where files can be locked."""
