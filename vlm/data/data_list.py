"""Several data sets as one: a list whose samples are numbered through, and the share of each that is taken."""

import re
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from alignkd.disk.next_step import tried
from alignkd.vlm.data.images import MissingImageError, image_files
from alignkd.vlm.data.open import open_data
from alignkd.vlm.data.sample import Sample
from alignkd.vlm.data.source import DataSet, DataSource, Piece, ReadProgress
from alignkd.vlm.errors import InputError

# `train-00003-of-00012` and `train-*` are parts of `train`
_PART = re.compile(r"[-_.]?(\d+-of-\d+(-[0-9a-f]+)?|[*?\[{].*)$")
_SUFFIXES = re.compile(r"(\.(json|jsonl|ndjson|parquet|tar|gz|tgz))+$", re.IGNORECASE)
_WORD = 2**64
MAX_NAME = 100


@dataclass(frozen=True, kw_only=True)
class ListedSource:
    """One data set of a list.

    Attributes:
        name: name of the data set.
        start: index of its first sample in the list.
        num_samples: samples that are taken.
        share: share of its samples that is taken.
        data: the data set with all of its samples.
    """

    name: str
    start: int
    num_samples: int
    share: float
    data: DataSource

    @property
    def pieces(self) -> tuple[Piece, ...]:
        """The files of the data set with all their samples; may read every byte of them."""
        return self.data.pieces

    @property
    def holds_images(self) -> bool:
        """See `DataSource`."""
        return self.data.holds_images

    @property
    def is_sequential(self) -> bool:
        """See `DataSource`."""
        return self.data.is_sequential


def data_set_names(sets: Sequence[DataSet]) -> list[str]:
    """The name of each data set: the given one, or one made from the path.

    Raises:
        InputError: two data sets have the same name.
    """
    names = [data.name or _name_of(data.path) for data in sets]
    for number, name in enumerate(names):
        if (first := names.index(name)) < number:
            raise InputError(
                f"data sets {sets[first].path} and {sets[number].path} are both named {name!r}; set data.name of one"
            )
    return names


def _name_of(path: Path) -> str:
    """`train` for `train.json`, `train-00000-of-00012.parquet`, `train-*.parquet`; a folder's own name."""
    stem = _SUFFIXES.sub("", path.name)
    name = _PART.sub("", stem)
    if name:
        return name[:MAX_NAME]
    return _name_of(path.parent) if path.parent.name else stem or "data"


def chosen(num_samples: int, share: float) -> NDArray[np.int64]:
    """Indices of the samples that a share takes, ascending, int64 [about num_samples * share].

    Each sample is taken or not by a hash of its index alone. So the number is not exact, a data set that grows keeps
    the samples that were taken, and a larger share contains a smaller one.
    """
    if share >= 1:
        return np.arange(num_samples, dtype=np.int64)
    # splitmix64 of the index
    words = (np.arange(1, num_samples + 1, dtype=np.uint64)) * np.uint64(0x9E3779B97F4A7C15)
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    words = words ^ (words >> np.uint64(31))
    return np.flatnonzero(words < np.uint64(min(_WORD - 1, int(share * _WORD)))).astype(np.int64)


def _taken(opened: DataSource, data: DataSet) -> NDArray[np.int64]:
    """Positions of the samples that the share takes; of pairs both samples or none."""
    if not data.pairs:
        return chosen(len(opened), data.share)
    pairs = chosen(len(opened) // 2, data.share)
    return (2 * pairs[:, None] + np.arange(2)).flatten()


class DataList:
    """The samples of several data sets, one after the other; see `alignkd.vlm.data.source.DataSource`.

    A sample's `index` is its position in the list.

    Args:
        sets: at least one data set.
        progress: called while files are read through.

    Attributes:
        sources: the data sets in order.
        reads_images: every data set has an image folder, or holds its images.

    Raises:
        InputError: one of them cannot be read or is empty, or two have the same name; names the data set.
    """

    def __init__(self, sets: Sequence[DataSet], *, progress: ReadProgress | None = None) -> None:
        names = data_set_names(sets)
        self.reads_images = True
        self.sources: list[ListedSource] = []
        # positions of the samples of each data set, None where all are taken
        self._taken: list[NDArray[np.int64] | None] = []
        start = 0
        for data, name in zip(sets, names, strict=True):
            opened = open_data(data, progress=progress)
            if not len(opened):
                raise InputError(f"{data.path}: contains no conversations; give a file with at least one")
            self.reads_images &= data.images is not None or opened.holds_images
            taken = _taken(opened, data) if data.share < 1 else None
            count = len(opened) if taken is None else len(taken)
            if not count:
                raise InputError(
                    f"{data.path}: share {data.share} takes none of {len(opened)} samples; give a larger share"
                )
            self.sources.append(ListedSource(name=name, start=start, num_samples=count, share=data.share, data=opened))
            self._taken.append(taken)
            start += count
        self._ends = list(accumulate(source.num_samples for source in self.sources))

    @property
    def path(self) -> Path:
        """Path of the first data set."""
        return self.sources[0].data.path

    @cached_property
    def pieces(self) -> tuple[Piece, ...]:
        """The files of all data sets, with all their samples."""
        return tuple(piece for source in self.sources for piece in source.pieces)

    @property
    def holds_images(self) -> bool:
        """Whether any of the files holds images."""
        return any(source.holds_images for source in self.sources)

    @property
    def is_sequential(self) -> bool:
        """Whether any of the data sets is slow to read in another order."""
        return any(source.is_sequential for source in self.sources)

    def starts_with(self, piece: Piece, start: int) -> bool:
        """See `DataSource.starts_with`; `start` counts all samples of the data sets, also those that no share takes."""
        for source in self.sources:
            if start < len(source.data):
                return source.data.starts_with(piece, start)
            start -= len(source.data)
        return False

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, index: int) -> Sample:
        index = range(len(self))[index]
        number, position = self._place(index)
        return replace(self.sources[number].data[position], index=index)

    def __iter__(self) -> Iterator[Sample]:
        return (self[index] for index in range(len(self)))

    def entry(self, index: int) -> Any:
        """The entry of a sample as its file has it."""
        number, position = self._place(range(len(self))[index])
        return self.sources[number].data.entry(position)

    def where(self, index: int) -> Path:
        """The path of the data set of a sample, for messages."""
        return self.sources[self._place(index)[0]].data.path

    def source_of(self, index: int) -> int:
        """Number of the data set of a sample."""
        return self._place(index)[0]

    def _place(self, index: int) -> tuple[int, int]:
        """Number of the data set of a sample, and the sample's position in it."""
        number = bisect_right(self._ends, index)
        position, taken = index - self.sources[number].start, self._taken[number]
        return number, position if taken is None else int(taken[position])


def sample_files(sample: Sample) -> tuple[bytes, ...]:
    """The bytes of a sample's image files, in order; also where its data set has no image folder.

    Raises:
        SampleError: as `image_files`; MissingImageError also where an image is neither in the data nor in a folder.
    """
    if sample.folder is None and needs_folder(sample):
        raise MissingImageError(
            f"{' and '.join(sample.images)[:200]}: not in the data file, and its data set has no image folder; set "
            "data.images"
        )
    return image_files(sample)


def check_image_folders(samples: DataList, sets: Sequence[DataSet]) -> None:
    """Refuse a data set whose samples have images in a folder that is not there, or is empty.

    Raises:
        InputError: names the data set and its folder.
    """
    for source, data in zip(samples.sources, sets, strict=True):
        folder = data.images
        # files that hold images are not searched for a sample without them: that would read all of the data
        if source.holds_images or (folder is not None and folder.is_dir() and not _is_empty(folder)):
            continue
        if any(needs_folder(sample) for sample in source.data):
            found = "is missing"
            if folder is not None:
                state = "an empty folder; is it mounted?" if folder.is_dir() else "not a folder"
                found = f"is {tried(folder)}, which is {state}"
            raise InputError(f"{data.path}: has samples with images, but data.images {found}; set data.images")


def needs_folder(sample: Sample) -> bool:
    """Whether an image of the sample is a file of its own."""
    return any(content is None for content in sample.contents) if sample.contents else bool(sample.images)


def _is_empty(folder: Path) -> bool:
    try:
        return next(folder.iterdir(), None) is None
    except OSError:  # the folder may not be listed
        return False
