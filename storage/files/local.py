"""The files of a store in a folder."""

import os
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from alignkd.disk.next_step import tried
from alignkd.disk.opening import regular_descriptor
from alignkd.storage.errors import CorruptStoreError, StoreError, repair_step
from alignkd.storage.files.checksum import file_sha256
from alignkd.storage.files.leftovers import is_dropping
from alignkd.storage.files.source import REPAIR, Buffers

# what one preadv call takes
MAX_BUFFERS = 1024


class LocalFile:
    """A file on a mounted file system, read with preadv."""

    def __init__(self, path: Path | str, label: str) -> None:
        self.label = label
        self._descriptor = -1
        try:
            self._descriptor = regular_descriptor(path)
            self.size = os.fstat(self._descriptor).st_size
        except OSError as error:
            raise CorruptStoreError(f"{label}: {error.strerror}; {repair_step(error, REPAIR)}") from None

    def __del__(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)

    def pread_into(self, buffers: Buffers, offset: int) -> None:
        end = offset + sum(map(len, buffers))
        while True:
            try:
                got = os.preadv(self._descriptor, buffers[:MAX_BUFFERS], offset)  # type: ignore[arg-type]  # arrays too
            except OSError as error:
                raise CorruptStoreError(f"{self.label}: {error.strerror}; {repair_step(error, REPAIR)}") from None
            offset += got
            if offset == end:
                return
            if not got:
                raise CorruptStoreError(f"{self.label}: the file ends at byte {offset}, expected {end}; {REPAIR}")
            # one call reads at most 2 GiB, on network file systems less
            buffers = _from(buffers, got)

    def will_need(self, offset: int, size: int) -> None:
        pass


class LocalFiles:
    """A store in a folder."""

    checks_sizes = True
    absent = "No such file or directory"

    def __init__(self, root: Path) -> None:
        self.root, self._root = root, str(root)

    @property
    def location(self) -> str:
        return str(self.root)

    def open(self, path: str, what: str = "", *, size: int | None = None, sha256: str | None = None) -> LocalFile:
        label = self.label(path)
        return LocalFile(label, f"{label}: {what}" if what else label)

    def read(self, path: str, limit: int) -> bytes:
        return read_file(f"{self._root}/{path}", limit)

    def read_many(self, paths: Sequence[str], limit: int) -> Iterator[bytes]:
        return (self.read(path, limit) for path in paths)

    def size(self, path: str) -> int | None:
        try:
            return os.stat(f"{self._root}/{path}").st_size  # noqa: PTH116 - called per file of a large store
        except OSError:
            return None

    def sizes(self, paths: Sequence[str]) -> list[int | None]:
        return [self.size(path) for path in paths]

    def sizes_below(self, folder: str) -> dict[str, int]:
        files = (path for path in (self.root / folder).rglob("*") if path.is_file())
        return {path.relative_to(self.root).as_posix(): path.stat().st_size for path in files}

    def droppings(self) -> list[str]:
        found = []
        for folder, folders, files in os.walk(self.root):
            where = Path(folder).relative_to(self.root)
            left = [name for name in (*folders, *files) if is_dropping(name)]
            found += [(where / name).as_posix() for name in left]
            folders[:] = [name for name in folders if name not in left]
        return sorted(found)

    def names(self, folder: str) -> list[str]:
        try:
            return os.listdir(self.root / folder)  # noqa: PTH208 - names, not paths
        except FileNotFoundError:
            return []

    def sha256(self, path: str, size: int, sha256: str) -> str:
        try:
            return file_sha256(self.root / path)
        except OSError as error:
            raise CorruptStoreError(f"{self.label(path)}: {error.strerror}; {repair_step(error, REPAIR)}") from None

    def fetch(self, path: str, sha256: str) -> Path:
        try:
            found = file_sha256(self.root / path)
        except OSError as error:
            step = repair_step(error, "restore it from a copy")
            raise CorruptStoreError(f"{self.label(path)}: {error.strerror}; {step}") from None
        if found != sha256:
            raise CorruptStoreError(
                f"{self.label(path)}: sha256 is {found[:12]}, expected {sha256[:12]}; restore it from a copy"
            )
        return self.root / path

    def refresh(self, folder: str) -> bool:
        return False

    def past_caches(self) -> AbstractContextManager["LocalFiles"]:
        return nullcontext(self)

    def label(self, path: str) -> str:
        return f"{self._root}/{path}"


def read_file(path: Path | str, limit: int) -> bytes:
    """All bytes of a small local file; see `StoreFiles.read`."""
    try:
        with os.fdopen(regular_descriptor(path), "rb", buffering=0) as file:
            size = os.fstat(file.fileno()).st_size
            data = file.readall() if size <= limit else b""
    except OSError as error:
        step = repair_step(error, "is this the folder of a store?")
        raise StoreError(f"{tried(path)}: {error.strerror}; {step}") from None
    if size > limit:
        raise CorruptStoreError(f"{path}: holds {size} bytes, expected at most {limit}; this is not a file of a store")
    return data


def _from(buffers: Buffers, done: int) -> Buffers:
    """The buffers without their first `done` bytes."""
    rest: list[Any] = list(buffers)
    while done >= len(rest[0]):
        done -= len(rest.pop(0))
    rest[0] = rest[0][done:]
    return rest
