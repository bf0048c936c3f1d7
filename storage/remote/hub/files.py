"""A store in a data set of the hub, for readers: the hub's cache first, then ranges through the block cache."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from alignkd.storage.errors import CorruptStoreError, StoreError
from alignkd.storage.files.checksum import file_sha256
from alignkd.storage.files.local import LocalFile
from alignkd.storage.files.source import ByteFile
from alignkd.storage.remote.files import ListedFiles
from alignkd.storage.remote.hub.store import HubStore
from alignkd.storage.remote.objects import AbsentError
from alignkd.storage.remote.settings import RemoteSettings
from alignkd.storage.remote.temporary_cache import temporary_cache
from alignkd.storage.schema.manifest import FILE_NAME

# stores that a message names
MAX_NAMED = 4


class HubFiles(ListedFiles):
    """See `alignkd.storage.files.source.StoreFiles`.

    Manifest, commit records and attachments are in the hub's cache. A shard file is read from there if `hf download`
    has put it there; otherwise only the needed blocks are fetched, into the block cache, whose size is bounded.
    """

    absent = "there is no such file at this revision"

    def __init__(self, objects: HubStore, settings: RemoteSettings) -> None:
        super().__init__(objects, settings)
        self._hub = objects

    def open(self, path: str, what: str = "", *, size: int | None = None, sha256: str | None = None) -> ByteFile:
        if (local := self._hub.local(path)) is None:
            return super().open(path, what, size=size, sha256=sha256)
        return LocalFile(local, f"{self.label(path)}: {what}" if what else self.label(path))

    def read(self, path: str, limit: int) -> bytes:
        try:
            return super().read(path, limit)
        except StoreError:
            if path != FILE_NAME or not (inner := self._stores_below()):
                raise
        raise StoreError(f"{self.label(path)}: there is no such file; this data set has stores in {', '.join(inner)}")

    def _stores_below(self) -> list[str]:
        """URLs of some stores in folders of this one."""
        try:
            found = sorted(path for path in self._hub.files() if path.endswith(f"/{FILE_NAME}"))
        except StoreError:
            return []
        place = self._hub.place
        prefixes = [place.in_repo(path.removesuffix(f"/{FILE_NAME}")) for path in found[:MAX_NAMED]]
        return [replace(place, prefix=prefix).url for prefix in prefixes]

    def sizes_below(self, folder: str) -> dict[str, int] | None:
        """None without a connection: the cache does not say what else the data set holds."""
        return None if self._hub.client.is_offline else super().sizes_below(folder)

    def fetch(self, path: str, sha256: str) -> Path:
        if self._hub.past_cache:
            return super().fetch(path, sha256)
        try:
            found = self._hub.client.download(path, self._hub.commit)
        except AbsentError:
            raise CorruptStoreError(f"{self.label(path)}: {self.absent}; restore it from a copy") from None
        if (actual := file_sha256(found)) != sha256:
            raise CorruptStoreError(
                f"{self.label(path)}: sha256 is {actual[:12]}, expected {sha256[:12]}; delete {found}, or restore the "
                "data set's file from a copy"
            )
        return found

    def refresh(self, folder: str) -> bool:
        self._hub.distrust(folder)
        return super().refresh(folder)

    @contextmanager
    def past_caches(self) -> "Iterator[HubFiles]":
        with temporary_cache(self.settings) as settings:
            fresh = HubFiles(self._hub.past(), settings)
            try:
                yield fresh
            finally:
                fresh.blocks.close()
