"""The files of a store in a data set of the hub, at one commit."""

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from alignkd.storage.files.hub_location import parse_hub_location
from alignkd.storage.files.local import read_file
from alignkd.storage.remote.hub.client import HubClient, HubFile, cached_file
from alignkd.storage.remote.objects import AbsentError, Listed, Span, whole
from alignkd.storage.remote.settings import RemoteSettings
from alignkd.storage.schema.commit_record import COMMITS
from alignkd.storage.schema.manifest import FILE_NAME

# what is fetched at the start
SMALL_FILES = (FILE_NAME, f"{COMMITS}/*.json")


class HubStore:
    """See `alignkd.storage.remote.objects.ListedStore`.

    The first request resolves the revision to a commit, and fetches the manifest and all commit records into the hub's
    cache. All later requests, also those of copies in other processes, name that commit.
    """

    def __init__(self, location: str, settings: RemoteSettings, *, past_cache: bool = False) -> None:
        """`past_cache`: read everything from the hub, as if its cache were empty.

        Raises:
            StoreError: an invalid URL.
        """
        self.place = parse_hub_location(location)
        self.location, self.past_cache = self.place.url, past_cache
        self.client = HubClient(self.place, settings)
        self._settings = settings
        self._found: tuple[str, Path] | None = None
        self._tree: dict[str, HubFile] | None = None
        # folders whose files in the hub's cache are damaged
        self._distrusted: set[str] = set()
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        # copies read the same commit, even if this one has read nothing yet
        return {**self.__dict__, "_found": self._snapshot(), "_tree": None, "_lock": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._lock = threading.Lock()

    @property
    def identity(self) -> str:
        """Without the commit: cached blocks are named by the content of their file."""
        return f"{self.client.endpoint} hf://datasets/{self.place.repo}/{self.place.prefix}"

    @property
    def commit(self) -> str:
        """The commit that is read, 40 hex digits."""
        return self._snapshot()[0]

    def past(self) -> "HubStore":
        """The same commit, read past the hub's cache; without a connection the cache is all there is."""
        copy = HubStore(self.location, self._settings, past_cache=not self.client.is_offline)
        copy._found = self._snapshot()
        return copy

    def distrust(self, folder: str) -> None:
        """Read the files below a folder from the hub from now on."""
        self._distrusted.add(folder)

    def local(self, path: str) -> Path | None:
        """A file in the hub's cache, None if it is not there or must not be used."""
        if self.past_cache or any(path.startswith(f"{folder}/") for folder in self._distrusted):
            return None
        return cached_file(self._snapshot()[1], self.place, path)

    def get(self, path: str, limit: int) -> bytes:
        if (local := self.local(path)) is not None:
            return read_file(local, limit)
        return whole(self.get_range(path, 0, limit), limit, f"{self.location}/{path}")

    def get_range(self, path: str, start: int, stop: int) -> Span:
        span = self.client.get_range(path, self.commit, start, stop)
        return Span(data=b"", total=self.size(path) or 0) if span is None else span

    def size(self, path: str) -> int | None:
        if (local := self.local(path)) is not None:
            return local.stat().st_size
        found = self.files().get(path)
        return None if found is None else found.num_bytes

    def listed(self, folder: str) -> Iterator[Listed]:
        """Every file below a folder ("" = the whole store)."""
        start = f"{folder}/" if folder else ""
        for path, file in self.files().items():
            if path.startswith(start):
                yield Listed(path=path, num_bytes=file.num_bytes)

    def names(self, folder: str) -> list[str]:
        """Names of files and folders directly in a folder; of commit records without a request."""
        if folder == COMMITS and not self.past_cache:
            records = self._snapshot()[1] / self.place.in_repo(COMMITS)
            return [path.name for path in records.iterdir()] if records.is_dir() else []
        start = len(folder) + 1 if folder else 0
        return list(dict.fromkeys(entry.path[start:].partition("/")[0] for entry in self.listed(folder)))

    def files(self) -> dict[str, HubFile]:
        """Every file of the store, by its path; from one listing.

        Raises:
            RemoteError: the hub does not answer.
        """
        commit = self.commit
        with self._lock:
            if self._tree is None:
                try:
                    self._tree = self.client.tree(commit)
                except AbsentError:  # no such folder at this commit
                    self._tree = {}
            return self._tree

    def _snapshot(self) -> tuple[str, Path]:
        with self._lock:
            if self._found is None:
                self._found = self.client.snapshot(SMALL_FILES)
            return self._found
