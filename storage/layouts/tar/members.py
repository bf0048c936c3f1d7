"""Walks the members of a tar shard by their own headers; what is not a plain file of this layout is refused."""

import json
import re
import tarfile
from dataclasses import dataclass
from typing import Any

import numpy as np

from alignkd.storage.errors import CorruptStoreError
from alignkd.storage.files.source import ByteFile, Bytes
from alignkd.storage.layouts.tar.format import BLOCK, COUNTS_MEMBER, MANIFEST_MEMBER, aligned

_RECORD_MEMBER = re.compile(r"(\d{9,19})\.([a-z0-9_]+\.npy|[a-z]{3,4})")


@dataclass(frozen=True)
class Member:
    """One member of a tar: where its headers begin, its content and its end with padding."""

    name: str
    start: int
    size: int

    @property
    def content(self) -> int:
        return self.start + BLOCK

    @property
    def end(self) -> int:
        return aligned(self.content + self.size)


class TarMembers:
    """A tar's members, one at a time."""

    def __init__(self, file: ByteFile) -> None:
        self.file = file

    def at(self, start: int) -> Member:
        """The member whose header begins at an offset.

        Raises:
            CorruptStoreError: no sound header, no regular file, a name that no writer gives, or content that leaves
                the tar.
        """
        if start + BLOCK > self.file.size:
            raise self.wrong(f"at byte {start}", "is not there; the tar is cut")
        try:
            info = tarfile.TarInfo.frombuf(self.read(start, BLOCK).tobytes(), "ascii", "strict")
        except (tarfile.HeaderError, ValueError):
            raise self.wrong(f"at byte {start}", "has no sound header") from None
        member = Member(info.name, start, info.size)
        if info.type != tarfile.REGTYPE:
            raise self.wrong(info.name, f"has type {info.type!r}, expected a regular file")
        if info.name not in (MANIFEST_MEMBER, COUNTS_MEMBER) and not _RECORD_MEMBER.fullmatch(info.name):
            raise self.wrong(info.name, "has a name that this layout does not use")
        if info.size < 0 or member.end > self.file.size:
            raise self.wrong(info.name, f"of {info.size} bytes leaves the tar")
        return member

    def json(self, member: Member) -> dict[str, Any]:
        """A member that is a JSON object."""
        try:
            document = json.loads(self.read(member.content, member.size).tobytes().decode("utf-8", "surrogatepass"))
        except (ValueError, RecursionError):
            document = None
        if not isinstance(document, dict):
            raise self.wrong(member.name, "is no JSON object")
        return document

    def read(self, start: int, size: int) -> Bytes:
        """Bytes of the tar."""
        data: Bytes = np.empty(size, np.uint8)
        self.file.pread_into([data], start)
        return data

    def wrong(self, member: str, problem: str) -> CorruptStoreError:
        """What is wrong with a member, in one line whatever its name is."""
        name = member.encode("unicode_escape").decode()[:100]
        return CorruptStoreError(f"{self.file.label}: member {name} {problem}; restore the tar from a copy")
