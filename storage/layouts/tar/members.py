"""Reads the members of a tar shard one record at a time; refuses whatever is not a plain file with a name of ours."""

import json
import re
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from alignkd.storage.errors import CorruptStoreError
from alignkd.storage.files.source import Bytes, LocalFile
from alignkd.storage.layouts.tar.format import COUNTS_MEMBER, MANIFEST_MEMBER, Buffer
from alignkd.storage.schema.manifest import MAX_FILE_BYTES, Manifest, parse_manifest

_RECORD_MEMBER = re.compile(r"(\d{9,18})\.([a-z0-9_]+\.npy|[a-z]{3,4})")


class TarMembers:
    """The members of a tar in a local folder.

    Attributes:
        file: the tar.
    """

    def __init__(self, path: Path) -> None:
        self.file = LocalFile(path, str(path))
        self._members = self._walk(path)

    def read_manifest(self) -> Manifest:
        """The manifest in the first member, of which at most `MAX_FILE_BYTES` are read."""
        info = next(self._members)
        if info.name != MANIFEST_MEMBER or info.size > MAX_FILE_BYTES:
            raise self.wrong(info.name, f"is the first member, expected {MANIFEST_MEMBER}")
        document = self.json(info.name, self.read(info.offset_data, info.size))
        return parse_manifest(document, f"{self.file.label}, member {MANIFEST_MEMBER}")

    def records(self) -> Iterator[tuple[str, dict[str, Buffer]]]:
        """Name of each record, and the content of its members by what follows that name; up to the last member."""
        name, contents = "", dict[str, Buffer]()
        for info in self._members:
            beginning, _, rest = info.name.partition(".")
            if contents and beginning != name:
                yield name, contents
                contents = {}
            if info.name == COUNTS_MEMBER:
                return
            name = beginning
            contents[rest] = self.read(info.offset_data, info.size)

    def json(self, member: str, content: Buffer) -> dict[str, Any]:
        """The JSON object in a member."""
        try:
            document = json.loads(bytes(content).decode("utf-8", "surrogatepass"))
        except (ValueError, RecursionError):
            document = None
        if not isinstance(document, dict):
            raise self.wrong(member, "is not a JSON object")
        return document

    def read(self, start: int, size: int) -> Bytes:
        """Bytes of the tar."""
        data: Bytes = np.empty(min(size, max(0, self.file.size - start)), np.uint8)
        self.file.pread_into([data], start)
        return data

    def wrong(self, member: str, problem: str) -> CorruptStoreError:
        """An error of one line, whatever the member's name is."""
        name = member.encode("unicode_escape").decode()[:100]
        return CorruptStoreError(f"{self.file.label}: member {name} {problem}; restore the tar from a copy")

    def _walk(self, path: Path) -> Iterator[tarfile.TarInfo]:
        """The members of the tar, checked; never ends, because the last one is not followed by another."""
        at = 0
        try:
            with path.open("rb") as file, tarfile.open(fileobj=file, mode="r:") as archive:
                while (info := archive.next()) is not None:
                    archive.members.clear()  # type: ignore[attr-defined]  # else tarfile keeps them all
                    self._check(info)
                    yield info
                    at = archive.offset
        except (tarfile.TarError, ValueError, RecursionError):
            pass
        raise self.wrong(f"at byte {at}", "is missing or has a damaged header; the tar is cut or damaged")

    def _check(self, info: tarfile.TarInfo) -> None:
        """Refuse a member that no writer writes."""
        if info.type != tarfile.REGTYPE:
            raise self.wrong(info.name, f"has type {info.type!r}, expected a regular file")
        if info.name not in (MANIFEST_MEMBER, COUNTS_MEMBER) and not _RECORD_MEMBER.fullmatch(info.name):
            raise self.wrong(info.name, "has a name that this layout does not use")
        if not 0 <= info.size <= self.file.size - info.offset_data:
            raise self.wrong(info.name, f"of {info.size} bytes does not fit into the tar")
