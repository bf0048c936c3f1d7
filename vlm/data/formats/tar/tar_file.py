"""A tar of WebDataset as entries: one per key."""

import os
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from alignkd.disk.file_version import FileVersion
from alignkd.disk.opening import open_regular, regular_descriptor
from alignkd.vlm.data.formats.entry_file import BytesRead
from alignkd.vlm.data.formats.hashing import HashedAsAWhole, check_unchanged
from alignkd.vlm.data.formats.tar.tar_entry import entry_of, is_image
from alignkd.vlm.data.formats.tar.tar_index import Member, TarIndex, index_tar
from alignkd.vlm.errors import InputError, unreadable

WITHOUT_KEY = "(members without a key)"


class TarEntries(HashedAsAWhole):
    """See `EntryFile`. Members are read at their positions; the tar is not unpacked.

    Raises:
        InputError: no such file; damaged or truncated.
    """

    is_sequential: Final = False

    def __init__(self, path: Path, progress: BytesRead | None = None) -> None:
        self.path = path
        self._descriptor: int | None = None
        self._version, self._index = _indexed(path, progress)
        self.holds_images = any(
            is_image(member.suffix) for number in range(len(self)) for member in self._index.sample(number)[1]
        )

    @property
    def block_sizes(self) -> tuple[int, ...]:
        """One block, see `EntryFile`."""
        return (len(self),)

    @property
    def not_read(self) -> Mapping[str, int]:
        """Files whose names belong to no sample."""
        count = self._index.num_without_key
        return {WITHOUT_KEY: count} if count else {}

    def where(self, number: int) -> str:
        """The names of the members of an entry."""
        _, members = self._index.sample(range(len(self))[number])
        return "members " + ", ".join(member.name for member in members)

    def __len__(self) -> int:
        return len(self._index)

    def __getitem__(self, number: int) -> Any:
        key, members = self._index.sample(range(len(self))[number])
        return entry_of(key, members, self._read)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_descriptor": None}

    def _read(self, member: Member) -> bytes:
        try:
            descriptor = self._open()
            data = os.pread(descriptor, member.size, member.offset)
            version = FileVersion.of(descriptor)
        except OSError as error:
            raise unreadable(self.path, error, "can no longer be read") from error
        check_unchanged(self.path, self._version, version)
        if len(data) < member.size:  # the system reads 2 GiB at once at most
            raise InputError(
                f"{self.path}: member {member.name!r} has {member.size} bytes, more than can be read at once"
            )
        return data

    def _open(self) -> int:
        if self._descriptor is None:
            descriptor = regular_descriptor(self.path)
            weakref.finalize(self, os.close, descriptor)
            self._descriptor = descriptor
        return self._descriptor


def _indexed(path: Path, progress: BytesRead | None) -> tuple[FileVersion, TarIndex]:
    try:
        with open_regular(path) as stream:
            version = FileVersion.of(stream.fileno())
            index = index_tar(stream, path, progress)
            check_unchanged(path, version, FileVersion.of(stream.fileno()))
    except OSError as error:
        raise unreadable(path, error) from error
    return version, index
