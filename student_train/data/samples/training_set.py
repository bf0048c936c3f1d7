"""The samples of all stores of a run in one numbering."""

from bisect import bisect_right
from collections.abc import Sequence
from functools import cached_property
from itertools import accumulate

import numpy as np
from numpy.typing import NDArray

from alignkd.storage import Record, StoreReader
from alignkd.storage.read.pairs import Pairs
from alignkd.student_train.data.samples.dataset import CachedDataset
from alignkd.vlm.inputs.examples import Example, Preparation


class TrainingSet:
    """Samples of one or several stores; those of the first store have the first positions.

    Args:
        datasets: the stores, at least one, all read by the same student.
    """

    def __init__(self, datasets: Sequence[CachedDataset]) -> None:
        self.datasets = tuple(datasets)
        self._starts = [0, *accumulate(len(dataset) for dataset in self.datasets)]

    def __len__(self) -> int:
        return self._starts[-1]

    def __getitem__(self, position: int) -> tuple[Example, Record]:
        """Example and record at a position; see `CachedDataset`."""
        store = bisect_right(self._starts, position) - 1
        return self.datasets[store][position - self._starts[store]]

    @property
    def readers(self) -> tuple[StoreReader, ...]:
        """The stores."""
        return tuple(dataset.reader for dataset in self.datasets)

    @property
    def reader(self) -> StoreReader:
        """The first store; all stores of a run have its shapes, its teacher and its kinds of targets."""
        return self.datasets[0].reader

    @property
    def preparation(self) -> Preparation:
        """The student's tokenizer, template and image processor."""
        return self.datasets[0].preparation

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Embedded tokens of each sample, int64; see `sequence_lengths`."""
        return np.concatenate([dataset.lengths for dataset in self.datasets])

    @cached_property
    def pairs(self) -> Pairs | None:
        """The pairs of all stores, in this numbering; None if they have no rejected answer."""
        found = Pairs.of_stores(self.readers)
        return found if found.rejected.any() else None

    def positions_of(self, store: int) -> NDArray[np.int64]:
        """Positions of the samples of a store, int64."""
        return np.arange(self._starts[store], self._starts[store + 1])
