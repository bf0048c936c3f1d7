"""A file of preference data: each entry is two, one with the chosen and one with the rejected answer."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from alignkd.vlm.data.entries.pairs import SIDES, entry_of_side
from alignkd.vlm.data.formats.entry_file import EntryFile, UnusableEntry
from alignkd.vlm.errors import SampleError


class PairedFile:
    """The entries of a file twice: entry n of the file is 2n with the chosen and 2n + 1 with the rejected answer.

    See `EntryFile`. It is sequential: neighbours share their images, so a store writes them into one shard.
    """

    def __init__(self, file: EntryFile) -> None:
        self._file = file

    @property
    def path(self) -> Path:
        """The file."""
        return self._file.path

    @property
    def holds_images(self) -> bool:
        """As of the file."""
        return self._file.holds_images

    @property
    def is_sequential(self) -> bool:
        """True."""
        return True

    @property
    def block_sizes(self) -> tuple[int, ...]:
        """Both entries of a pair are in one block."""
        return tuple(2 * size for size in self._file.block_sizes)

    @property
    def not_read(self) -> Mapping[str, int]:
        """As of the file; every entry counts twice."""
        return {name: 2 * count for name, count in self._file.not_read.items()}

    @property
    def sha256(self) -> str:
        """As of the file."""
        return self._file.sha256

    @property
    def sha256_of_entries(self) -> str:
        """As of the file."""
        return self._file.sha256_of_entries

    def begins_with(self, count: int, sha256: str) -> bool:
        """Whether the first `count` entries, an even number, are those that `sha256` identifies."""
        return count % 2 == 0 and self._file.begins_with(count // 2, sha256)

    def longest(self, count: int) -> Sequence[int]:
        """Both entries of each of the longest pairs."""
        return [2 * number + side for number in self._file.longest(-(-count // 2)) for side in range(2)][:count]

    def where(self, number: int) -> str:
        """The place of the pair, and which of its answers."""
        return f"{self._file.where(number // 2)}, {SIDES[number % 2]}"

    def __len__(self) -> int:
        return 2 * len(self._file)

    def __getitem__(self, number: int) -> Any:
        pair, side = divmod(range(len(self))[number], 2)
        entry = self._file[pair]
        if isinstance(entry, UnusableEntry):
            return UnusableEntry(id=f"{entry.id or f'#{pair}'}#{SIDES[side]}", problem=entry.problem)
        try:
            return entry_of_side(entry, SIDES[side], f"#{pair}")
        except SampleError as error:
            own_id = entry.get("id") or f"#{pair}"
            return UnusableEntry(id=f"{own_id}#{SIDES[side]}", problem=str(error))
