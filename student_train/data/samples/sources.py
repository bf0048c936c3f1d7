"""The sources of a run's samples: the data sets that its stores were made from."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from alignkd.storage import SampleOrder, StoreReader


def sources_of(reader: StoreReader) -> tuple[list[str], NDArray[np.int64]]:
    """Names of the sources of a store, and the number of each record's source, int64 [n].

    Samples that were added to a data set later belong to it.
    """
    names = list(dict.fromkeys(reader.sources))
    number_of = np.array([names.index(name) for name in reader.sources], np.int64)
    return names, number_of[reader.source_of]


def shown_names(store: str, sources: Sequence[str], *, alone: bool) -> list[str]:
    """Names of the sources of a store that are unique in a run.

    A store gives its own name to its only source. Several sources are named `STORE/SOURCE`, without the store if it is
    the only one of the run (`alone`).
    """
    if len(sources) == 1:
        return [store]
    return list(sources) if alone else [f"{store}/{source}" for source in sources]


@dataclass(frozen=True, kw_only=True, eq=False)
class Sources:
    """Counts samples by source.

    Attributes:
        names: name of every source of the run; all are different.
        of_sample: int64 [samples], number of each sample's source, in the numbering of `TrainingSet`.
    """

    names: tuple[str, ...]
    of_sample: NDArray[np.int64]

    @classmethod
    def of_stores(cls, names: Sequence[str], readers: Sequence[StoreReader]) -> "Sources":
        """The sources of some stores.

        Args:
            names: name of each store.
            readers: the stores, in the order of `TrainingSet`.
        """
        found: list[str] = []
        numbers = []
        for name, reader in zip(names, readers, strict=True):
            own, of_record = sources_of(reader)
            numbers.append(len(found) + of_record)
            found += shown_names(name, own, alone=len(readers) == 1)
        return cls(names=tuple(found), of_sample=np.concatenate(numbers))

    def __len__(self) -> int:
        return len(self.names)

    def __call__(self, positions: NDArray[np.int64]) -> dict[str, int]:
        """Samples by source among these positions; 0 for a source without any."""
        counts = np.bincount(self.of_sample[positions], minlength=len(self))
        return dict(zip(self.names, map(int, counts), strict=True))

    def up_to(self, step: int, order: SampleOrder) -> dict[str, int]:
        """Samples by source over the first `step` optimiser steps."""
        totals = np.zeros(len(self), np.int64)
        for number in range(step):
            totals += np.bincount(self.of_sample[order.global_batch_indices(number)], minlength=len(self))
        return dict(zip(self.names, map(int, totals), strict=True))
