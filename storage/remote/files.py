"""The files of a remote store, for readers: small files whole, shard files in blocks through the cache."""

import hashlib
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any, Self, TypeVar

import numpy as np

from alignkd.disk.whole_file import written_whole
from alignkd.storage.errors import CorruptStoreError, StoreError, disk_errors
from alignkd.storage.files.checksum import file_sha256
from alignkd.storage.files.leftovers import is_dropping
from alignkd.storage.files.source import REPAIR, Buffers, ByteFile
from alignkd.storage.remote.block_cache import hashed
from alignkd.storage.remote.blocks import KNOWN, Block, BlockFetcher, group_of
from alignkd.storage.remote.objects import AbsentError, ListedStore, ObjectStore
from alignkd.storage.remote.settings import RemoteSettings
from alignkd.storage.remote.temporary_cache import temporary_cache
from alignkd.storage.schema.commit_record import COMMITS, MAX_COMMIT_BYTES, commit_name
from alignkd.storage.schema.manifest import read_manifest

T = TypeVar("T")
# small files fetched ahead; bounds memory
LOOK_AHEAD = 64
# blocks of one read fetched at the same time; bounds memory
MOST_AHEAD = 16
DOWNLOAD_BYTES = 8 << 20
# what `sha256` reads at a time, and how many of these pieces it requests ahead; with the threads it bounds memory
PIECE_BYTES = 4 << 20
PIECES_AHEAD = 3


class RemoteFiles:
    """See `alignkd.storage.files.source.StoreFiles`; pickles without its connections."""

    checks_sizes = False
    absent = "there is no such object"

    def __init__(self, objects: ObjectStore, settings: RemoteSettings) -> None:
        self.objects, self.settings = objects, settings
        self.blocks = BlockFetcher(objects, settings)
        # commit records as first read, compressed: needed when a shard is opened again
        self._records: dict[str, bytes] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_records": {}}

    @property
    def location(self) -> str:
        return self.objects.location

    def open(self, path: str, what: str = "", *, size: int | None = None, sha256: str | None = None) -> ByteFile:
        label = f"{self.label(path)}: {what}" if what else self.label(path)
        if size is None and (size := self.size(path)) is None:
            raise CorruptStoreError(f"{label}: there is no such object; {REPAIR}")
        return RemoteFile(self, path, label, size, f"{size} {sha256}")

    def read(self, path: str, limit: int) -> bytes:
        if (kept := self._records.get(path)) is not None:
            return zlib.decompress(kept)
        try:
            data = self.objects.get(path, limit)
        except AbsentError:
            raise StoreError(f"{self.label(path)}: there is no such object; is this the URL of a store?") from None
        if path.startswith(f"{COMMITS}/"):
            self._keep(path, data)
        return data

    def read_many(self, paths: Sequence[str], limit: int) -> Iterator[bytes]:
        return ordered(self.blocks, lambda path: self.read(path, limit), paths)

    def size(self, path: str) -> int | None:
        return self.objects.size(path)

    def names(self, folder: str) -> list[str]:
        if folder == COMMITS:
            self._records = {}
        return self._names(folder)

    def _names(self, folder: str) -> list[str]:
        raise NotImplementedError

    def droppings(self) -> list[str]:
        return sorted(path for path in self.sizes_below("") or () if is_dropping(path))

    def sha256(self, path: str, size: int, sha256: str) -> str:
        file = self.open(path, size=size, sha256=sha256)
        digest, buffer = hashlib.sha256(), np.empty(min(PIECE_BYTES, size), np.uint8)
        for start in range(0, size, PIECE_BYTES):
            piece = buffer[: size - start]
            if self.settings.cached:
                file.will_need(start, (1 + PIECES_AHEAD) * PIECE_BYTES)
            file.pread_into([piece], start)
            digest.update(piece.data)
        return digest.hexdigest()

    def fetch(self, path: str, sha256: str) -> Path:
        """A copy named by its checksum in the cache folder; it does not count towards the cache's limit."""
        copy = self.settings.cache_folder / "attachments" / sha256 / Path(path).name
        with disk_errors(f"{self.label(path)}: copy in {copy.parent}"):
            if copy.exists() and file_sha256(copy) == sha256:
                return copy
            copy.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            with written_whole(copy) as temporary:
                self._download(path, temporary)
                if (found := file_sha256(temporary)) != sha256:
                    raise CorruptStoreError(
                        f"{self.label(path)}: sha256 is {found[:12]}, expected {sha256[:12]}; restore it from a copy"
                    )
        return copy

    def refresh(self, folder: str) -> bool:
        self.blocks.forget(group_of(self.objects, folder))
        return True

    @contextmanager
    def past_caches(self) -> Iterator[Self]:
        with temporary_cache(self.settings) as settings:
            fresh = type(self)(self.objects, settings)
            try:
                yield fresh
            finally:
                fresh.blocks.close()

    def label(self, path: str) -> str:
        return f"{self.location}/{path}"

    def sizes_below(self, folder: str) -> dict[str, int] | None:
        raise NotImplementedError

    def sizes(self, paths: Sequence[str]) -> Sequence[int | None]:
        return tuple(ordered(self.blocks, self.size, paths))

    def _keep(self, path: str, data: bytes) -> None:
        self._records[path] = zlib.compress(data, 1)

    def _download(self, path: str, target: Path) -> None:
        try:
            total = self.objects.get_range(path, 0, 1).total
            with target.open("wb") as file:
                for start in range(0, total, DOWNLOAD_BYTES):
                    file.write(self.objects.get_range(path, start, min(total, start + DOWNLOAD_BYTES)).data)
        except AbsentError:
            raise CorruptStoreError(f"{self.label(path)}: there is no such object; restore it from a copy") from None


class ListedFiles(RemoteFiles):
    """A bucket can be listed."""

    def __init__(self, objects: ListedStore, settings: RemoteSettings) -> None:
        super().__init__(objects, settings)
        self._bucket = objects

    def _names(self, folder: str) -> list[str]:
        return self._bucket.names(folder)

    def sizes_below(self, folder: str) -> dict[str, int] | None:
        return {entry.path: entry.num_bytes for entry in self._bucket.listed(folder)}


class HttpFiles(RemoteFiles):
    """A web server cannot be listed: all commit records of the plan are requested."""

    def _names(self, folder: str) -> list[str]:
        """Names of the commit records; other folders appear empty."""
        if folder != COMMITS:
            return []
        paths = [commit_name(shard) for shard in range(read_manifest(self).num_shards)]
        found = zip(paths, ordered(self.blocks, self._record_is_there, paths), strict=True)
        return [path.rpartition("/")[2] for path, there in found if there]

    def sizes_below(self, folder: str) -> None:
        return None

    def _record_is_there(self, path: str) -> bool:
        try:
            self._keep(path, self.objects.get(path, MAX_COMMIT_BYTES))
        except AbsentError:
            return False
        return True


class RemoteFile:
    """One file of a remote store, read block by block; see `alignkd.storage.files.source.ByteFile`."""

    def __init__(self, files: RemoteFiles, path: str, label: str, size: int, identity: str) -> None:
        self.label, self.size = label, size
        self._files, self._path = files, path
        self._group, self._name = group_of(files.objects, path), hashed(path, identity)

    def pread_into(self, buffers: Buffers, offset: int) -> None:
        end = offset + sum(map(len, buffers))
        if end > self.size:
            raise CorruptStoreError(f"{self.label}: the file ends at byte {self.size}, expected {end}; {REPAIR}")
        blocks = self._blocks(offset, end)
        rest = list(buffers)
        for number, block in enumerate(blocks):
            # request one more block for each that was read
            first_ahead = number + MOST_AHEAD - 1 if number else 1
            for ahead in blocks[first_ahead : number + MOST_AHEAD]:
                self._files.blocks.want(ahead)
            first, last = max(offset, block.start), min(end, block.stop)
            self._read_block(block, _take(rest, last - first), first - block.start)

    def will_need(self, offset: int, size: int) -> None:
        # a scan announces far more than a record, and would evict itself from a small cache
        for block in self._blocks(offset, min(self.size, offset + size))[:MOST_AHEAD]:
            self._files.blocks.want(block)

    def _read_block(self, block: Block, buffers: Buffers, offset: int) -> None:
        try:
            total = self._files.blocks.read_into(block, buffers, offset)
        except AbsentError:
            raise CorruptStoreError(f"{self.label}: there is no such object; {REPAIR}") from None
        if total not in (KNOWN, self.size):
            raise CorruptStoreError(f"{self.label}: holds {total} bytes, committed {self.size}; {REPAIR}")

    def _blocks(self, start: int, stop: int) -> list[Block]:
        """The blocks that cover a range; without a cache the range itself."""
        settings = self._files.settings
        step = int(settings.block_bytes)
        bounds = [(at, min(at + step, self.size)) for at in range(start - start % step, stop, step)]
        if not settings.cached:
            bounds = [(max(start, low), min(stop, high)) for low, high in bounds]
        return [self._block(low, high) for low, high in bounds]

    def _block(self, start: int, stop: int) -> Block:
        name = f"{self._name}-{start}-{stop}"
        return Block(path=self._path, start=start, stop=stop, group=self._group, name=name)


def ordered(blocks: BlockFetcher, work: Callable[[str], T], arguments: Iterable[str]) -> Iterator[T]:
    """Results of a function in the order of its arguments, computed ahead by threads."""
    rest = iter(arguments)
    coming: deque[Future[T]] = deque()
    while True:
        coming += blocks.run_all(work, list(islice(rest, LOOK_AHEAD - len(coming))))
        if not coming:
            return
        yield coming.popleft().result()


def _take(rest: list[Any], count: int) -> list[Any]:
    """Remove the first `count` bytes from a list of buffers and return them as buffers."""
    taken = []
    while count:
        head = rest.pop(0)
        if len(head) > count:
            rest.insert(0, head[count:])
            head = head[:count]
        taken.append(head)
        count -= len(head)
    return taken
