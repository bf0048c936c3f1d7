"""The files of a store for `verify`: where they are read from, and what can be wrong with those of a shard."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Protocol

from alignkd.storage.errors import StoreError
from alignkd.storage.files.leftovers import is_dropping
from alignkd.storage.files.source import LocalFiles, StoreFiles, open_files
from alignkd.storage.schema.commit_record import CommitRecord, missing_or_resized
from alignkd.storage.tools.verify.shard import file_problems


@contextmanager
def files_to_verify(location: Path | str) -> Iterator[StoreFiles]:
    """The files of a store as its disk or server keeps them, past what earlier readers have cached of it.

    Raises:
        StoreError: a location that cannot be right.
    """
    files = open_files(location)
    if isinstance(files, LocalFiles):
        yield files
        return
    from alignkd.storage.remote.files import RemoteFiles
    from alignkd.storage.tools.verify.remote import fresh_copies

    with fresh_copies(files) if isinstance(files, RemoteFiles) else nullcontext(files) as fresh:
        yield fresh


class ShardChecks(Protocol):
    """What can be wrong with the files of shards; `alignkd.storage.tools.verify.remote` has the distant ones."""

    @property
    def limits(self) -> Sequence[str]:
        """What cannot be found, in words."""

    def sizes(self, commit: CommitRecord) -> list[str]:
        """Files that are missing or of another size."""

    def contents(self, commit: CommitRecord) -> list[str]:
        """Files with another checksum, or that are not the shard's."""

    def droppings(self) -> list[str]:
        """Paths, relative to the store, of what observers left (`alignkd.storage.files.leftovers`)."""


class _LocalChecks:
    limits: tuple[str, ...] = ()

    def __init__(self, store: Path) -> None:
        self.store = store

    def sizes(self, commit: CommitRecord) -> list[str]:
        return missing_or_resized(self.store, commit)

    def contents(self, commit: CommitRecord) -> list[str]:
        return file_problems(self.store, commit)

    def droppings(self) -> list[str]:
        return local_droppings(self.store)


def local_droppings(store: Path) -> list[str]:
    """Paths of what observers left anywhere in a store's folder; a link is not followed."""
    found = []
    for folder, folders, files in os.walk(store):
        where = Path(folder).relative_to(store)
        left = [name for name in (*folders, *files) if is_dropping(name)]
        found += [(where / name).as_posix() for name in left]
        folders[:] = [name for name in folders if name not in left]
    return sorted(found)


def checks_of(files: StoreFiles) -> ShardChecks:
    """The checks for a store's place.

    Raises:
        StoreError: files of a kind that nobody can check.
    """
    if isinstance(files, LocalFiles):
        return _LocalChecks(files.root)
    from alignkd.storage.remote.files import RemoteFiles
    from alignkd.storage.tools.verify.remote import RemoteChecks

    if not isinstance(files, RemoteFiles):
        raise StoreError(f"store {files.location}: nothing here can verify it; copy it to a folder")
    return RemoteChecks(files)
