"""The sha256 of a file, computed when first requested."""

import hashlib
from collections.abc import Sized
from functools import cached_property
from pathlib import Path

from tqdm import tqdm

from alignkd.disk.file_version import FileVersion
from alignkd.disk.opening import open_regular
from alignkd.vlm.errors import InputError, unreadable

BLOCK_BYTES = 1 << 20


class HashedAsAWhole(Sized):
    """The part of an `EntryFile` whose entries are identified by the bytes of the whole file.

    Attributes:
        path: the file.
    """

    path: Path
    _version: FileVersion

    @cached_property
    def sha256(self) -> str:
        """sha256 of the file; reads all of it."""
        return sha256_of_file(self.path, self._version)

    @property
    def sha256_of_entries(self) -> str:
        """That of the file."""
        return self.sha256

    def begins_with(self, count: int, sha256: str) -> bool:
        """Only for all entries, because those that follow may change any byte of the file."""
        return count == len(self) and self.sha256 == sha256

    def longest(self, count: int) -> tuple[()]:
        """None: entries have no size of their own."""
        return ()


def sha256_of_file(path: Path, version: FileVersion) -> str:
    """sha256 of all bytes of a file, 64 hex digits, with a progress bar on a terminal.

    Args:
        version: of the file when it was opened.

    Raises:
        InputError: it has changed since, or cannot be read.
    """
    digest = hashlib.sha256()
    try:
        with (
            open_regular(path) as stream,
            tqdm(desc=f"hash {path.name}", total=version.num_bytes, unit="B", unit_scale=True, disable=None) as bar,
        ):
            while block := stream.read(BLOCK_BYTES):
                digest.update(block)
                bar.update(len(block))
            check_unchanged(path, version, FileVersion.of(stream.fileno()))
    except OSError as error:
        raise unreadable(path, error, "can no longer be read") from error
    return digest.hexdigest()


def check_unchanged(path: Path, before: FileVersion, now: FileVersion) -> None:
    """Refuse a file that was written to while it was in use.

    Raises:
        InputError: names both versions.
    """
    if now != before:
        raise InputError(f"{path}: changed while in use, was {before} at the start, now {now}; start again")
