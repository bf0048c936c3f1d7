"""Verifying the shards of a remote store: sizes by listing or asking, every byte past the caches of readers."""

import hashlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cached_property, partial

import numpy as np
from pydantic import ByteSize

from alignkd.storage.errors import RemoteError, StoreError, disk_errors
from alignkd.storage.files.exclusive import make_temporary_folder, remove, remove_leftovers
from alignkd.storage.files.leftovers import is_dropping
from alignkd.storage.remote.files import RemoteFiles
from alignkd.storage.schema.commit_record import SHARDS, CommitRecord, FileEntry
from alignkd.storage.tools.verify.shard import FOREIGN

READ_THREADS = 4
PIECE_BYTES = 4 << 20
# asked for before they are hashed; with the threads and the pieces it bounds memory
AHEAD_PIECES = 3
# what verification keeps of a store on the local disk, so that one transfer serves all that it looks at
MAX_KEPT_BYTES = 4 << 30


@contextmanager
def fresh_copies(files: RemoteFiles) -> Iterator[RemoteFiles]:
    """The same store for the length of a block, with a cache of its own that begins empty: what an earlier reader has
    cached says nothing about the bytes that the server keeps.

    The cache lies in the staging folder and takes 4 GiB at most, less where the readers' cache is smaller.

    Raises:
        StoreError: the staging folder cannot be written.
    """
    staging = files.settings.staging_folder
    with disk_errors(f"staging folder {staging}"):
        staging.mkdir(mode=0o700, parents=True, exist_ok=True)
        remove_leftovers(staging)
        folder, lock = make_temporary_folder(staging, "verify")
    kept = ByteSize(min(files.settings.cache_bytes, MAX_KEPT_BYTES))
    fresh = files.with_settings(files.settings.model_copy(update={"cache_folder": folder, "cache_bytes": kept}))
    try:
        yield fresh
    finally:
        fresh.blocks.close()
        remove(folder)
        lock.release()


class RemoteChecks:
    """What can be wrong with the files of a remote store's shards, in words. A service that does not answer, or
    refuses, raises RemoteError: it says nothing about them."""

    def __init__(self, files: RemoteFiles) -> None:
        self.files = files

    def sizes(self, commit: CommitRecord) -> list[str]:
        """Files that are not there or not as long as committed."""
        problems = []
        paths = [f"{commit.path}/{entry.path}" for entry in commit.files]
        if self._listed is None:
            found = self.files.sizes(paths)
        else:
            listed = self._listed.get(commit.path, {})
            found = [listed.get(path) for path in paths]
        for entry, path, size in zip(commit.files, paths, found, strict=True):
            if size is None:
                problems.append(f"{self.files.label(path)}: there is no such object")
            elif size != entry.bytes:
                problems.append(f"{self.files.label(path)}: holds {size} bytes, committed {entry.bytes}")
        return problems

    def contents(self, commit: CommitRecord) -> list[str]:
        """Files with another checksum and, where the store can be listed, files that are not the shard's."""
        with ThreadPoolExecutor(READ_THREADS) as pool:
            problems = list(pool.map(partial(self._content, commit), commit.files))
        known = {f"{commit.path}/{entry.path}" for entry in commit.files}
        foreign = sorted((self._listed or {}).get(commit.path, {}).keys() - known)
        return [problem for problem in problems if problem] + [
            f"{self.files.label(path)}: {FOREIGN}" for path in foreign if not is_dropping(path)
        ]

    def droppings(self) -> list[str]:
        """Paths of what observers left, where the store can be listed."""
        return sorted(path for path in self.files.sizes_below("") or () if is_dropping(path))

    @property
    def limits(self) -> Sequence[str]:
        """What cannot be found here, in words."""
        if self._listed is not None:
            return []
        return ["a web server cannot be listed: objects that belong to no shard are not looked for"]

    @cached_property
    def _listed(self) -> dict[str, dict[str, int]] | None:
        """Shard folder -> path -> bytes, by listing once; first needed after the commit records have been read, so
        that a shard committed meanwhile is not taken for a missing one."""
        sizes = self.files.sizes_below(SHARDS)
        if sizes is None:
            return None
        folders: dict[str, dict[str, int]] = {}
        for path, size in sizes.items():
            folders.setdefault("/".join(path.split("/")[:2]), {})[path] = size
        return folders

    def _content(self, commit: CommitRecord, entry: FileEntry) -> str | None:
        path = f"{commit.path}/{entry.path}"
        try:
            found = self._sha256(path, entry)
        except RemoteError:
            raise
        except StoreError as error:
            return str(error)
        label, committed = self.files.label(path), entry.sha256
        return None if found == committed else f"{label}: sha256 is {found[:12]}, committed {committed[:12]}"

    def _sha256(self, path: str, entry: FileEntry) -> str:
        file = self.files.open(path, size=entry.bytes, sha256=entry.sha256)
        sha256, buffer = hashlib.sha256(), np.empty(min(PIECE_BYTES, entry.bytes), np.uint8)
        for start in range(0, entry.bytes, PIECE_BYTES):
            piece = buffer[: entry.bytes - start]
            if self.files.settings.cached:
                file.will_need(start, (1 + AHEAD_PIECES) * PIECE_BYTES)
            file.pread_into([piece], start)
            sha256.update(piece.data)
        return sha256.hexdigest()
