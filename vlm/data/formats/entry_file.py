"""One file of a data set, whatever its format: a sequence of entries."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

# Called with the bytes read so far.
BytesRead = Callable[[int], None]


@dataclass(frozen=True)
class UnusableEntry:
    """In the place of an entry that cannot be read, though the rest of the file can.

    Attributes:
        id: id of the sample; empty if it is not known.
        problem: why the entry is unusable, and what to do.
    """

    id: str
    problem: str


class EntryFile(Protocol):
    """The entries of a file, each read when requested.

    Copies may be pickled to other processes, and several threads may read.
    """

    @property
    def path(self) -> Path:
        """The file."""

    @property
    def holds_images(self) -> bool:
        """Whether entries hold images, as far as the file shows it without reading all entries."""

    @property
    def is_sequential(self) -> bool:
        """Whether entries are read fast only in their order."""

    @property
    def block_sizes(self) -> tuple[int, ...]:
        """Numbers of consecutive entries that are read together; they add up to all entries."""

    @property
    def not_read(self) -> Mapping[str, int]:
        """Name of what is never read, such as a column -> number of entries that have it."""

    @property
    def sha256(self) -> str:
        """sha256 of the bytes of the file, 64 hex digits. May read all of them."""

    @property
    def sha256_of_entries(self) -> str:
        """Identifies the entries: `Piece.sha256`. May read all bytes of the file."""

    def begins_with(self, count: int, sha256: str) -> bool:
        """Whether the first `count` entries are those that `sha256` identifies."""

    def longest(self, count: int) -> Sequence[int]:
        """Numbers of the `count` longest entries, where that is known without reading them; else none."""

    def where(self, number: int) -> str:
        """Where in the file an entry is, for people."""

    def __len__(self) -> int:
        """Number of entries."""

    def __getitem__(self, number: int) -> Any:
        """An entry: JSON values and bytes, or an `UnusableEntry`.

        Raises:
            InputError: the file has changed since it was opened, or is no longer readable.
        """
