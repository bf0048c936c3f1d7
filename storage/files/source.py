"""Where a store's bytes come from: the one seam between readers and the file system.

Readers name files by their path relative to the store, with forward slashes. Local folders are implemented here;
a location with another scheme is opened by the module that `_SCHEMES` names, imported when first needed.
"""

import os
import re
from collections.abc import Iterator, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from alignkd.disk.next_step import tried
from alignkd.disk.opening import regular_descriptor
from alignkd.storage.errors import CorruptStoreError, StoreError, repair_step
from alignkd.storage.files.checksum import file_sha256
from alignkd.storage.remote.objects import parse_location

REPAIR = "restore the shard from a copy, or delete its commit record and dump again"
# what one preadv call takes
MAX_BUFFERS = 1024

Bytes = NDArray[np.uint8]
# what is filled: arrays, or views of their bytes, which cost a third of the time to cut and to hand over
Buffers = Sequence[Bytes] | Sequence[memoryview]

# scheme -> module with `open_location(location: str) -> StoreFiles`
_SCHEMES: dict[str, str] = {
    "s3": "alignkd.storage.remote.files",
    "http": "alignkd.storage.remote.files",
    "https": "alignkd.storage.remote.files",
}


_WRITTEN = ("s3",)
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+")
# of other tools: a path that begins so is one of their URLs that has lost a slash
_ELSEWHERE = (
    "gs",
    "gcs",
    "az",
    "abfs",
    "abfss",
    "wasb",
    "wasbs",
    "hdfs",
    "oss",
    "hf",
    "ftp",
    "sftp",
    "file",
    *_SCHEMES,
)
_PLACES = "a folder, s3://BUCKET/PREFIX or, to read only, http(s)://HOST/PATH; mount or copy the place to a folder"


class ByteFile(Protocol):
    """One open file; safe in threads and after a fork, closed with its last reference."""

    @property
    def label(self) -> str:
        """Names the file, and what it holds, in errors."""

    @property
    def size(self) -> int:
        """Its length in bytes when it was opened."""

    def pread_into(self, buffers: Buffers, offset: int) -> None:
        """Fill contiguous byte buffers, one after the other, from consecutive bytes of the file.

        Raises:
            CorruptStoreError: the file ends before the buffers are full, or cannot be read.
        """

    def will_need(self, offset: int, size: int) -> None:
        """These bytes will be asked for soon; a distant file may start to fetch them."""


class StoreFiles(Protocol):
    """The files of one store."""

    @property
    def location(self) -> str:
        """The store as the user named it."""

    @property
    def checks_sizes(self) -> bool:
        """Whether asking for the size of every file is cheap; a distant file's is checked when it is opened."""

    def open(self, path: str, what: str = "", *, size: int | None = None, sha256: str | None = None) -> ByteFile:
        """Open a file for reading.

        Args:
            what: says in errors what it holds.
            size: as committed.
            sha256: as committed, hex; identifies the content for caches, is not compared.

        Raises:
            CorruptStoreError: it is not there, or cannot be opened.
        """

    def read(self, path: str, limit: int) -> bytes:
        """All bytes of a small file.

        Raises:
            StoreError: it is not there or cannot be read.
            CorruptStoreError: it holds more than `limit` bytes.
        """

    def read_many(self, paths: Sequence[str], limit: int) -> Iterator[bytes]:
        """All bytes of many small files, in the order asked for; raises as `read`."""

    def size(self, path: str) -> int | None:
        """Length of a file in bytes, None if it is not there."""

    def list(self, folder: str) -> list[str]:
        """Names (not paths) of the files directly in a folder, in any order; empty if there is no folder."""

    def fetch(self, path: str, sha256: str) -> Path:
        """A verified local copy of a file for other software; the file itself where it is local.

        Raises:
            CorruptStoreError: it is not there, or has another checksum.
        """

    def refresh(self, folder: str) -> bool:
        """Forget copies of the bytes below a folder, after damage; whether there were any, so that another try pays."""

    def label(self, path: str) -> str:
        """The file as errors name it."""


def open_files(location: "Path | str | StoreFiles") -> StoreFiles:
    """The files of the store at a path or URL.

    Raises:
        StoreError: a scheme that nobody implements.
    """
    if isinstance(location, Path):
        location = as_location(location)
    if not isinstance(location, Path | str):
        return location
    check_location(location)
    if isinstance(location, Path):
        return LocalFiles(location)
    scheme, separator, _ = location.partition("://")
    if not separator:
        return LocalFiles(Path(location))
    files: StoreFiles = import_module(_SCHEMES[scheme]).open_location(location)
    return files


def check_location(location: Path | str, *, writing: bool = False) -> None:
    """Refuse a place where no store can be, before anything is loaded for it; nothing is asked over the network.

    Args:
        writing: the store is to be written.

    Raises:
        StoreError: a scheme that nobody implements, one that is only read, or a URL without a bucket or a host.
    """
    scheme, separator, rest = str(location).partition(":/")
    if not separator or not _SCHEME.fullmatch(scheme) or not (rest.startswith("/") or scheme in _ELSEWHERE):
        return
    host = re.split(r"[?#]", rest.lstrip("/").rpartition("@")[2])[0]  # without a password or a token
    if scheme not in _SCHEMES:
        raise StoreError(f"store {scheme}://{host}: scheme is {scheme}, expected {_PLACES}")
    if writing and scheme not in _WRITTEN:
        raise StoreError(f"store {scheme}://{host}: can only be read; write to a folder or to s3://BUCKET/PREFIX")
    parse_location(f"{scheme}://{rest.lstrip('/')}")


def as_location(path: Path | str) -> Path | str:
    """A folder as a path, a URL as a text; also a URL that was made a path and so lost a slash."""
    scheme, _, rest = str(path).partition(":/")
    if scheme in _SCHEMES and rest:
        return f"{scheme}://{rest.lstrip('/')}"
    return path if "://" in str(path) else Path(path)


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
            # the kernel gives at most 2 GiB at once, network file systems less
            buffers = _from(buffers, got)

    def will_need(self, offset: int, size: int) -> None:
        pass


class LocalFiles:
    """A store in a folder."""

    checks_sizes = True

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

    def list(self, folder: str) -> list[str]:
        try:
            return os.listdir(self.root / folder)  # noqa: PTH208 - names, not paths
        except FileNotFoundError:
            return []

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
        raise CorruptStoreError(f"{path}: holds {size} bytes, expected at most {limit}; this is no file of a store")
    return data


def _from(buffers: Buffers, done: int) -> Buffers:
    """The buffers without their first `done` bytes."""
    rest: list[Any] = list(buffers)
    while done >= len(rest[0]):
        done -= len(rest.pop(0))
    rest[0] = rest[0][done:]
    return rest
