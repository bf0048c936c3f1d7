"""Samples that are read and prepared once, for data sets that fit into memory.

A training without data workers prepares every sample between two steps. Data sets that are small enough are kept as
they were prepared, so only the first pass over them costs that time.
"""

import pickle
from typing import Protocol

from alignkd.storage import Record, StoreReader
from alignkd.vlm.inputs.examples import Example

KEPT_BYTES = 1 << 30
"""Largest size of all kept samples of a run, in bytes."""


class Samples(Protocol):
    """What batches are made of: `TrainingSet`, `CachedDataset` or `KeptSamples`."""

    @property
    def reader(self) -> StoreReader:
        """The first store."""

    def __len__(self) -> int: ...

    def __getitem__(self, position: int) -> tuple[Example, Record]: ...


class KeptSamples:
    """Samples that are the same at every access, and prepared at the first one.

    The size of the whole data set is estimated from the samples so far. If the estimate exceeds the limit, all are
    dropped, and from then on every access prepares its sample.

    Args:
        samples: the samples.
        limit: largest size of all samples together, in bytes.
    """

    def __init__(self, samples: Samples, limit: int = KEPT_BYTES) -> None:
        self._samples, self._limit = samples, limit
        # as bytes: an array of a record may show a larger block, and callers may write to what they get
        self._kept: dict[int, bytes] | None = {}
        self._size = 0

    @property
    def reader(self) -> StoreReader:
        """The first store."""
        return self._samples.reader

    @property
    def num_kept(self) -> int | None:
        """Number of the samples that are kept; None if they are too large."""
        return None if self._kept is None else len(self._kept)

    @property
    def num_bytes(self) -> int:
        """Size of the samples that are kept."""
        return self._size

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, position: int) -> tuple[Example, Record]:
        """Example and record of this number; errors as of the samples."""
        if self._kept is not None and (data := self._kept.get(position)) is not None:
            found: tuple[Example, Record] = pickle.loads(data)
            return found
        prepared = self._samples[position]
        if self._kept is not None:
            self._keep(self._kept, position, prepared)
        return prepared

    def _keep(self, kept: dict[int, bytes], position: int, prepared: tuple[Example, Record]) -> None:
        kept[position] = data = pickle.dumps(prepared, protocol=pickle.HIGHEST_PROTOCOL)
        self._size += len(data)
        if self._size * len(self) > self._limit * len(kept):
            self._kept, self._size = None, 0
