"""Which records of a store are the chosen and the rejected answer to one question."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from alignkd.storage.read.store import StoreReader

NO_PARTNER = -1


@dataclass(frozen=True, kw_only=True, eq=False)
class Pairs:
    """The pairs of some records.

    Attributes:
        rejected: bool [n], which records hold a rejected answer.
        partner: int64 [n], position of the other record of the pair; -1 of a record that belongs to no pair, or whose
            other answer was unusable.
    """

    rejected: NDArray[np.bool_]
    partner: NDArray[np.int64]

    @property
    def has_partner(self) -> NDArray[np.bool_]:
        """bool [n]."""
        found: NDArray[np.bool_] = self.partner != NO_PARTNER
        return found

    @property
    def first(self) -> NDArray[np.bool_]:
        """bool [n], the chosen record of each whole pair."""
        return self.has_partner & ~self.rejected

    @property
    def second(self) -> NDArray[np.bool_]:
        """bool [n], the rejected record of each whole pair."""
        return self.has_partner & self.rejected

    @classmethod
    def of(cls, reader: StoreReader) -> "Pairs":
        """The pairs of a store, from its indices alone."""
        rejected, partner = np.zeros(len(reader), np.bool_), np.full(len(reader), NO_PARTNER)
        sources, start = reader.manifest.all_sources(), 0
        if any(source.pairs for source in sources):
            index = reader.dataset_index
            order = np.argsort(index, kind="stable")
            for source in sources:
                end = start + source.num_samples
                if source.pairs:
                    own = order[(index[order] >= start) & (index[order] < end)]
                    rejected[own] = (index[own] - start) % 2 == 1
                    pair = (index[own] - start) // 2
                    both = np.flatnonzero(pair[:-1] == pair[1:])
                    partner[own[both]], partner[own[both + 1]] = own[both + 1], own[both]
                start = end
        return cls(rejected=rejected, partner=partner.astype(np.int64))

    @classmethod
    def of_stores(cls, readers: Sequence[StoreReader]) -> "Pairs":
        """The pairs of several stores whose records are numbered through."""
        found, start = [cls.of(reader) for reader in readers], 0
        partners = []
        for pairs in found:
            partners.append(np.where(pairs.has_partner, pairs.partner + start, NO_PARTNER))
            start += len(pairs.partner)
        return cls(
            rejected=np.concatenate([pairs.rejected for pairs in found]),
            partner=np.concatenate(partners).astype(np.int64),
        )
