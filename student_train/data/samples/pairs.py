"""Pairs of a chosen and a rejected answer in the order of training, in micro-batches and in batches.

With `train.preference` a pair is one unit: it is drawn, dealt out to ranks and cut into micro-batches as a whole, and
counts as one sample of `micro_batch` and `global_batch`. In a list of positions its chosen record comes directly before
its rejected one.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from alignkd.storage import SampleOrder, StoreReader
from alignkd.storage.read.pairs import NO_PARTNER, Pairs


@dataclass(frozen=True, kw_only=True, eq=False)
class BatchPairs:
    """The pairs among the samples of a batch.

    Attributes:
        rejected_B: bool, which samples hold a rejected answer, with or without the chosen one in the batch.
        rows_G2: int64, the samples with the chosen and with the rejected answer of each pair.
    """

    rejected_B: NDArray[np.bool_]
    rows_G2: NDArray[np.int64]


class PairedOrder(SampleOrder):
    """An order of chosen records and of records without a partner, each followed by its partner.

    Args:
        units: the order without the rejected records of whole pairs; `num_samples` and `global_batch` are its numbers.
        pairs: of all records.
    """

    def __init__(self, units: SampleOrder, pairs: Pairs) -> None:
        super().__init__(units.num_samples, units.seed, units.global_batch)
        self._units, self._pairs = units, pairs

    def global_batch_indices(self, step: int) -> NDArray[np.int64]:
        """Positions of the records of this step, int64; as many as there are, a pair being two."""
        return with_partners(self._units.global_batch_indices(step), self._pairs)


def with_partners(units: NDArray[np.int64], pairs: Pairs) -> NDArray[np.int64]:
    """Each position and, behind a chosen record, its rejected one."""
    behind = np.where(pairs.first[units], pairs.partner[units], NO_PARTNER)
    both: NDArray[np.int64] = np.stack([units, behind], axis=1).flatten().astype(np.int64)
    found: NDArray[np.int64] = both[both != NO_PARTNER]
    return found


def unit_starts(positions: NDArray[np.int64], pairs: Pairs) -> NDArray[np.int64]:
    """The place of the first record of each unit in such a list."""
    follows = np.zeros(len(positions), np.bool_)
    follows[1:] = pairs.second[positions[1:]] & (pairs.partner[positions[1:]] == positions[:-1])
    return np.flatnonzero(~follows)


def paired_list(positions: NDArray[np.int64], pairs: Pairs) -> NDArray[np.int64]:
    """The same positions with the records of each whole pair behind one another."""
    return with_partners(positions[~pairs.second[positions]], pairs)


def pairs_in_batch(positions: NDArray[np.int64], pairs: Pairs) -> BatchPairs:
    """The pairs of a batch of these positions."""
    starts = unit_starts(positions, pairs)
    sizes = np.diff([*starts, len(positions)])
    chosen = starts[sizes == 2]
    return BatchPairs(rejected_B=pairs.rejected[positions], rows_G2=np.stack([chosen, chosen + 1], axis=1))


def not_drawn(readers: Sequence[StoreReader], held_out: NDArray[np.int64], *, in_pairs: bool) -> NDArray[np.int64]:
    """Positions that no order draws by itself: those held out and, in pairs, rejected records of whole pairs."""
    if not in_pairs:
        return held_out
    return np.union1d(held_out, np.flatnonzero(Pairs.of_stores(readers).second))
