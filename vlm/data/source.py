"""The interface of a data set, and its description by the user."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

from alignkd.vlm.data.sample import Sample

# Called with the bytes read so far and the bytes in all.
ReadProgress = Callable[[int, int], None]
Answers = Literal["given", "missing"]
"""Whether every question of a data set has its answer, or a teacher is to write those that are missing."""


@dataclass(frozen=True, kw_only=True)
class DataSet:
    """One data set as a user describes it.

    Attributes:
        path: a file, a folder of files, or a pattern (`data/train-*.parquet`).
        images: folder to which image paths are relative; None if there is none.
        name: name of the data set in stores and metrics; empty: made from the path.
        roles: name of a role in the data -> `human`, `gpt` or `system`, in addition to the names that are known.
        system: system prompt of samples that have none; None: that of the template.
        share: share of its samples that is taken, above 0 and at most 1; the choice depends on their number alone.
        answers: `missing`: questions may lack an answer, which `alignkd generate` writes.
        pairs: every entry has a `chosen` and a `rejected` answer and is two samples, 2n and 2n + 1.
    """

    path: Path
    images: Path | None = None
    name: str = ""
    roles: Mapping[str, str] = field(default_factory=dict)
    system: str | None = None
    share: float = 1.0
    answers: Answers = "given"
    pairs: bool = False


@dataclass(frozen=True, kw_only=True)
class Piece:
    """Consecutive samples of a data set that come from one file: what a store keeps to recognise its data.

    Attributes:
        name: for messages: the file's name.
        num_samples: number of samples.
        sha256: identifies their content; 64 hex digits.
    """

    name: str
    num_samples: int
    sha256: str


class DataSource(Protocol):
    """The samples of a data set, each read when requested; malformed entries are samples with a `problem`.

    Copies may be pickled to other processes, and several threads may read.
    """

    @property
    def path(self) -> Path:
        """What messages name."""

    @property
    def pieces(self) -> tuple[Piece, ...]:
        """The files in their order. May read every byte of them when first requested."""

    @property
    def holds_images(self) -> bool:
        """Whether the files hold images themselves, so that a store must embed them."""

    @property
    def is_sequential(self) -> bool:
        """Whether reading in another order than that of the file is slow, as in Parquet."""

    def starts_with(self, piece: Piece, start: int) -> bool:
        """Whether the samples `start`, `start + 1`, ... are those of `piece`, so that a store of it can grow."""

    def __len__(self) -> int:
        """Number of entries, unusable ones included."""

    def __getitem__(self, index: int) -> Sample:
        """A sample.

        Raises:
            InputError: a file has changed since it was opened, or is no longer readable.
        """

    def __iter__(self) -> Iterator[Sample]:
        """Every sample in order."""

    def entry(self, index: int) -> Any:
        """The entry of a sample as the file has it: JSON values, and bytes."""
