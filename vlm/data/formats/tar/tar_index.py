"""The members of a tar by sample, found in one pass over its headers."""

import re
import tarfile
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from alignkd.vlm.data.formats.entry_file import BytesRead
from alignkd.vlm.errors import InputError, one_line

# As webdataset: the key is the path up to the first dot of the base name, the rest is the suffix.
_KEY_AND_SUFFIX = re.compile(r"((?:.*/|)[^.]+)[.]([^/]*)", re.DOTALL)
# webdataset keeps notes about the tar itself under such names
_NOTE = re.compile(r"__[^/]*__(?:$|/)")
_BLOCK = tarfile.BLOCKSIZE
# Padding after the end mark; GNU tar writes up to 20 blocks, other programs more.
_PADDING = 1 << 20
_NO_FILE = -1


@dataclass(frozen=True)
class Member:
    """A member of a sample.

    Attributes:
        name: path in the tar.
        suffix: what follows the key and its dot, in lower case.
        offset: position of the content in the tar, in bytes.
        size: in bytes; -1 for a link and other members without content of their own.
    """

    name: str
    suffix: str
    offset: int
    size: int

    @property
    def is_file(self) -> bool:
        """Whether the member has content."""
        return self.size != _NO_FILE


@dataclass(frozen=True, kw_only=True, eq=False)
class TarIndex:
    """The members of all samples, about 30 bytes each and their names.

    Attributes:
        names, name_ends: the names one after the other in UTF-8, and int64 [members], where each ends.
        offsets, sizes: int64 [members], see `Member`.
        order: int64 [members]; members by sample, in the order of the tar within each.
        sample_ends: int64 [samples]; one more than the place in `order` of a sample's last member.
        num_without_key: number of files that belong to no sample.
    """

    names: bytes
    name_ends: NDArray[np.int64]
    offsets: NDArray[np.int64]
    sizes: NDArray[np.int64]
    order: NDArray[np.int64]
    sample_ends: NDArray[np.int64]
    num_without_key: int

    def __len__(self) -> int:
        return len(self.sample_ends)

    def sample(self, number: int) -> tuple[str, list[Member]]:
        """The key of a sample, and its members."""
        start = int(self.sample_ends[number - 1]) if number else 0
        members = [self._member(place) for place in self.order[start : self.sample_ends[number]].tolist()]
        key, _ = key_and_suffix(members[0].name) or ("", "")
        return key, members

    def _member(self, place: int) -> Member:
        start = int(self.name_ends[place - 1]) if place else 0
        name = self.names[start : self.name_ends[place]].decode("utf-8", "surrogateescape")
        _, suffix = key_and_suffix(name) or ("", "")
        return Member(name, suffix, int(self.offsets[place]), int(self.sizes[place]))


def key_and_suffix(name: str) -> tuple[str, str] | None:
    """`a/b.0.jpg` -> (`a/b`, `0.jpg`); None for a name that belongs to no sample."""
    found = _KEY_AND_SUFFIX.fullmatch(name)
    return None if found is None or _NOTE.match(name) else (found[1], found[2].lower())


def index_tar(stream: BufferedReader, path: Path, progress: BytesRead | None = None) -> TarIndex:
    """Read the headers of a tar.

    Members of a sample need not be neighbours. Samples are in the order of their first members.

    Args:
        path: name of the tar, for messages.
        progress: called with the position in the tar.

    Raises:
        InputError: truncated, damaged, or several tars joined.
    """
    names = bytearray()
    name_ends, offsets, sizes, sample_of = array("q"), array("q"), array("q"), array("q")
    samples: dict[str, int] = {}
    num_without_key = 0
    for member in _members(stream, path, progress):
        found = key_and_suffix(member.name)
        if found is None:
            num_without_key += member.isfile()
            continue
        names += member.name.encode("utf-8", "surrogateescape")
        name_ends.append(len(names))
        offsets.append(member.offset_data)
        sizes.append(member.size if member.isreg() and not member.issparse() else _NO_FILE)
        sample_of.append(samples.setdefault(found[0], len(samples)))
    numbers = np.array(sample_of, np.int64)
    return TarIndex(
        names=bytes(names),
        name_ends=np.array(name_ends, np.int64),
        offsets=np.array(offsets, np.int64),
        sizes=np.array(sizes, np.int64),
        order=np.argsort(numbers, kind="stable"),
        sample_ends=np.cumsum(np.bincount(numbers, minlength=len(samples))),
        num_without_key=num_without_key,
    )


def _members(stream: BufferedReader, path: Path, progress: BytesRead | None) -> Iterator[tarfile.TarInfo]:
    """All members except folders."""
    try:
        with tarfile.open(fileobj=stream, mode="r:") as tar:
            while (member := tar.next()) is not None:
                tar.members.clear()  # type: ignore[attr-defined]  # it would keep every header
                if not member.isdir():
                    yield member
                if progress is not None:
                    progress(tar.offset)
            end = tar.offset
    except tarfile.TarError as error:
        raise _damaged(path, one_line(error)) from error
    _check_end(stream, path, end)


def _check_end(stream: BufferedReader, path: Path, end: int) -> None:
    """tarfile takes a damaged header for the end of the tar, and stops at the end of the first of several tars."""
    stream.seek(end)
    if stream.read(_BLOCK) != bytes(_BLOCK):
        raise _damaged(path, f"no end mark at byte {end}")
    if stream.read(_PADDING).strip(b"\0"):
        raise InputError(f"{path}: more follows after the tar's end at byte {end}; unpack it and write one tar")


def _damaged(path: Path, why: str) -> InputError:
    return InputError(f"{path}: damaged or truncated tar ({why}); fetch or write the file again")
