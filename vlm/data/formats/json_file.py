"""JSON lists and JSON lines, also gzipped, as a file of a data set."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from alignkd.vlm.data.formats.entry_file import BytesRead
from alignkd.vlm.data.json.stream import JsonEntries


class JsonFile:
    """See `EntryFile`, and `JsonEntries` for the arguments and errors."""

    # entries with images as base64 are found by `EntrySource`
    holds_images: Final = False
    is_sequential: Final = False
    not_read: Final[Mapping[str, int]] = {}

    def __init__(self, path: Path, progress: BytesRead | None = None) -> None:
        self.path = path
        report = None if progress is None else (lambda done, _: progress(done))
        self._entries = JsonEntries(path, progress=report)

    @property
    def block_sizes(self) -> tuple[int, ...]:
        """One block, see `EntryFile`."""
        return (len(self._entries),)

    @property
    def sha256(self) -> str:
        """sha256 of the file's bytes; of a gzipped file: of what it unpacks to."""
        return self._entries.sha256

    @property
    def sha256_of_entries(self) -> str:
        """sha256 of the bytes up to the end of the last entry: a file to which entries were added begins with them."""
        return self._entries.sha256_of_first(len(self))

    def begins_with(self, count: int, sha256: str) -> bool:
        """See `JsonEntries.begins_with`."""
        return self._entries.begins_with(count, sha256)

    def longest(self, count: int) -> Sequence[int]:
        """See `EntryFile`."""
        return self._entries.longest(count)

    def where(self, number: int) -> str:
        """The line of an entry."""
        return f"line {self._entries.line_of(number)}"

    def __len__(self) -> int:
        return len(self._entries)

    def __getitem__(self, number: int) -> Any:
        return self._entries[number]
