"""Where the bytes of a store come from: the interface between readers and the file system.

Readers name files by their path relative to the store, with forward slashes. `local.py` implements the interface for
folders, `alignkd.storage.remote.files` for buckets, web servers and the hub.
"""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

REPAIR = "restore the shard from a copy, or delete its commit record and dump again"

Bytes = NDArray[np.uint8]
# buffers to fill: arrays, or views of their bytes, which take a third of the time to slice and to pass on
Buffers = Sequence[Bytes] | Sequence[memoryview]


class ByteFile(Protocol):
    """One open file; safe in threads and after a fork, closed with its last reference."""

    @property
    def label(self) -> str:
        """Name of the file, and what it holds, for errors."""

    @property
    def size(self) -> int:
        """Length in bytes when the file was opened."""

    def pread_into(self, buffers: Buffers, offset: int) -> None:
        """Fill contiguous byte buffers, one after the other, from consecutive bytes of the file.

        Raises:
            CorruptStoreError: the file ends before the buffers are full, or cannot be read.
        """

    def will_need(self, offset: int, size: int) -> None:
        """Announce that these bytes will be read soon; a remote file may start to fetch them."""


class StoreFiles(Protocol):
    """The files of one store."""

    @property
    def location(self) -> str:
        """The store as the user named it."""

    @property
    def checks_sizes(self) -> bool:
        """Whether asking for the size of every file is cheap; the size of a remote file is checked on opening."""

    @property
    def absent(self) -> str:
        """How errors describe a file that does not exist."""

    def open(self, path: str, what: str = "", *, size: int | None = None, sha256: str | None = None) -> ByteFile:
        """Open a file for reading.

        Args:
            what: what the file holds, for errors.
            size: committed length in bytes.
            sha256: committed checksum, hex; identifies the content in caches, is not compared.

        Raises:
            CorruptStoreError: the file does not exist, or cannot be opened.
        """

    def read(self, path: str, limit: int) -> bytes:
        """All bytes of a small file.

        Raises:
            StoreError: the file does not exist or cannot be read.
            CorruptStoreError: the file holds more than `limit` bytes.
        """

    def read_many(self, paths: Sequence[str], limit: int) -> Iterator[bytes]:
        """All bytes of many small files, in the order of `paths`; raises as `read`."""

    def size(self, path: str) -> int | None:
        """Length of a file in bytes, None if it does not exist."""

    def sizes(self, paths: Sequence[str]) -> Sequence[int | None]:
        """`size` of each path; a remote store asks for many at the same time."""

    def sizes_below(self, folder: str) -> dict[str, int] | None:
        """Path and length in bytes of every file below a folder; None where the place cannot be listed."""

    def names(self, folder: str) -> list[str]:
        """Names (not paths) of the files directly in a folder, in any order; empty if the folder does not exist."""

    def droppings(self) -> list[str]:
        """Paths of the files and folders that other software left (`alignkd.storage.files.leftovers`), sorted."""

    def sha256(self, path: str, size: int, sha256: str) -> str:
        """sha256 (hex) of a file's content.

        Args:
            size: committed length in bytes.
            sha256: committed checksum, hex; identifies the content in caches, is not compared.

        Raises:
            CorruptStoreError: the file cannot be read, or is shorter.
        """

    def fetch(self, path: str, sha256: str) -> Path:
        """A verified local copy of a file for other software; the file itself if it is local.

        Raises:
            CorruptStoreError: the file does not exist, or has another checksum.
        """

    def refresh(self, folder: str) -> bool:
        """Drop cached bytes below a folder, after damage; True if reading again may give other bytes."""

    def past_caches(self) -> AbstractContextManager["StoreFiles"]:
        """The same store for the length of a block, read past what earlier readers have cached of it.

        Raises:
            StoreError: the temporary cache cannot be made.
        """

    def label(self, path: str) -> str:
        """The file as errors name it."""
