"""A data set of one or several files: its samples, numbered through all files."""

from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from hashlib import sha256
from itertools import accumulate, chain, islice
from pathlib import Path
from typing import Any

from alignkd.vlm.data.entries.reading import EntryReading
from alignkd.vlm.data.formats.entry_file import EntryFile
from alignkd.vlm.data.formats.samples import sample_of
from alignkd.vlm.data.sample import Sample
from alignkd.vlm.data.source import DataSet, Piece

# Samples that are read to see whether entries hold images as base64: spread over the data set where that is fast. As
# many of the longest of each file are read as well, because a picture is longer than most texts.
NUM_TRIED = 64


class EntrySource:
    """The samples of a data set; see `DataSource`, which has what every user of data sets needs."""

    def __init__(self, data: DataSet, files: Sequence[EntryFile]) -> None:
        self.data, self.files = data, tuple(files)
        self._reading = EntryReading.of(data)
        self._ends = list(accumulate(map(len, self.files)))

    @property
    def path(self) -> Path:
        """The path of the data set, as given."""
        return self.data.path

    @property
    def pieces(self) -> tuple[Piece, ...]:
        """One piece per file; see `DataSource.pieces`."""
        return tuple(
            Piece(name=self._name(file), num_samples=len(file), sha256=file.sha256_of_entries) for file in self.files
        )

    @cached_property
    def holds_images(self) -> bool:
        """Whether files hold images, by their format or by some samples (`NUM_TRIED`), which may miss a rare one."""
        if any(file.holds_images for file in self.files):
            return True
        step = 1 if self.is_sequential else max(1, len(self) // NUM_TRIED)
        spread = islice(range(0, len(self), step), NUM_TRIED)
        starts = (end - len(file) for end, file in zip(self._ends, self.files, strict=True))
        longest = (
            start + number for start, file in zip(starts, self.files, strict=True) for number in file.longest(NUM_TRIED)
        )
        return any(self[index].contents for index in chain(spread, longest))

    @property
    def is_sequential(self) -> bool:
        """Whether reading in another order than that of the files is slow."""
        return any(file.is_sequential for file in self.files)

    @property
    def sha256(self) -> str:
        """sha256 of the bytes of the only file; of several files: that of their hashes in order. 64 hex digits."""
        hashes = [file.sha256 for file in self.files]
        return hashes[0] if len(hashes) == 1 else sha256("".join(hashes).encode()).hexdigest()

    @property
    def not_read(self) -> Mapping[str, int]:
        """Name of what is never read, such as a column of Parquet -> number of samples that have it."""
        counts: Counter[str] = Counter()
        for file in self.files:
            counts.update(file.not_read)
        return counts

    @property
    def block_sizes(self) -> tuple[int, ...]:
        """Numbers of consecutive samples that are read together; they add up to all samples."""
        return tuple(size for file in self.files for size in file.block_sizes)

    def starts_with(self, piece: Piece, start: int) -> bool:
        """Whether the samples from `start` on are those of `piece`; see `DataSource.starts_with`."""
        if start not in (0, *self._ends[:-1]):
            return False
        if not 0 < piece.num_samples <= len(self) - start:
            return piece.num_samples == 0
        return self.files[bisect_right(self._ends, start)].begins_with(piece.num_samples, piece.sha256)

    def sample_and_entry(self, index: int) -> tuple[Sample, Any]:
        """A sample and the entry it was made from, read once."""
        entry = self.entry(index)
        return sample_of(range(len(self))[index], entry, self._reading), entry

    def where(self, index: int) -> str:
        """The file of a sample and the place in it, for people."""
        file, number = self._place(index)
        return f"{file.path}: {file.where(number)}"

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __getitem__(self, index: int) -> Sample:
        return self.sample_and_entry(index)[0]

    def __iter__(self) -> Iterator[Sample]:
        return (self[index] for index in range(len(self)))

    def entry(self, index: int) -> Any:
        """The entry of a sample: JSON values, and bytes; an `UnusableEntry` if it cannot be read."""
        file, number = self._place(index)
        return file[number]

    def _place(self, index: int) -> tuple[EntryFile, int]:
        index = range(len(self))[index]
        number = bisect_right(self._ends, index)
        return self.files[number], index - (self._ends[number - 1] if number else 0)

    def _name(self, file: EntryFile) -> str:
        """The path below the data set's folder, because files in several folders may have one name."""
        folder, path = self.data.path, file.path
        return str(path.relative_to(folder)) if path != folder and path.is_relative_to(folder) else path.name
