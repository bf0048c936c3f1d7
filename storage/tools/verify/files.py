"""What can be wrong with the files of a store's shards, in a folder, in a bucket or behind a web server."""

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property, partial

from alignkd.storage.errors import RemoteError, StoreError
from alignkd.storage.files.source import StoreFiles
from alignkd.storage.schema.commit_record import SHARDS, CommitRecord, FileEntry
from alignkd.storage.schema.shard_files import foreign_files, missing_or_resized

# one thread waits for bytes while another one hashes
READ_THREADS = 4


class ShardFiles:
    """The files of a store's shards, compared with commit records; a problem is one line.

    A service that does not answer, or refuses, raises RemoteError, which does not mean that a file is damaged.
    """

    def __init__(self, files: StoreFiles) -> None:
        self.files = files

    def sizes(self, commit: CommitRecord) -> list[str]:
        """Files that do not exist or have another length."""
        return missing_or_resized(self.files, commit, listed=self._listed_of(commit))

    def contents(self, commit: CommitRecord) -> list[str]:
        """Files with another checksum and, where the store can be listed, files that are not the shard's."""
        with ThreadPoolExecutor(READ_THREADS) as pool:
            problems = list(pool.map(partial(self._content, commit), commit.files))
        return [*filter(None, problems), *foreign_files(self.files, commit, listed=self._listed_of(commit))]

    @property
    def limits(self) -> Sequence[str]:
        """One line for each kind of problem that cannot be found in this place."""
        if self.files.checks_sizes or self._listed is not None:
            return []
        return ["the place cannot be listed: objects that belong to no shard are not looked for"]

    def _listed_of(self, commit: CommitRecord) -> Mapping[str, int] | None:
        """Path -> length of the files of a shard; None: ask for each."""
        listed = None if self.files.checks_sizes else self._listed
        return None if listed is None else listed.get(commit.path, {})

    @cached_property
    def _listed(self) -> dict[str, dict[str, int]] | None:
        """Shard folder -> path -> length, from one listing of a remote store.

        It is made after the commit records were read, so that a shard committed meanwhile does not count as missing.
        """
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
            found = self.files.sha256(path, entry.bytes, entry.sha256)
        except RemoteError:
            raise
        except StoreError as error:
            return str(error)
        label, committed = self.files.label(path), entry.sha256
        return None if found == committed else f"{label}: sha256 is {found[:12]}, committed {committed[:12]}"
