"""Pairs of records of two stores that are the same sample."""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from alignkd.storage.read.store import StoreReader


@dataclass(frozen=True, kw_only=True, eq=False)
class Matches:
    """Positions of records.

    Attributes:
        pairs: the same sample in A and in B, int64 [n, 2], in the order of A.
        only_a, only_b: records that the other store does not have, int64, ascending.
    """

    pairs: NDArray[np.int64]
    only_a: NDArray[np.int64]
    only_b: NDArray[np.int64]


def match_records(a: StoreReader, b: StoreReader) -> Matches:
    """Match by key; records that share a key (one sample twice in the data) are paired in the order of their index."""
    identities_a, identities_b = _identities([a, b])
    _, in_a, in_b = np.intersect1d(identities_a, identities_b, assume_unique=True, return_indices=True)
    order = np.argsort(in_a)
    return Matches(
        pairs=np.stack([in_a[order], in_b[order]], axis=1).astype(np.int64),
        only_a=np.setdiff1d(np.arange(len(a)), in_a),
        only_b=np.setdiff1d(np.arange(len(b)), in_b),
    )


def key_numbers(readers: list[StoreReader]) -> list[NDArray[np.int64]]:
    """A number for each record's key, equal for equal keys, int64 [n] for each store."""
    keys = [np.fromiter(reader.keys, "S64", len(reader)) for reader in readers]
    _, numbers = np.unique(np.concatenate(keys), return_inverse=True)
    starts = np.cumsum([0, *map(len, keys)])
    return [numbers[start:stop].astype(np.int64) for start, stop in pairwise(starts)]


def _identities(readers: list[StoreReader]) -> list[NDArray[np.int64]]:
    """A number for each (key, number of earlier records of the store with the same key)."""
    result = []
    for reader, numbers in zip(readers, key_numbers(readers), strict=True):
        order = np.lexsort((reader.dataset_index, numbers))
        rising = numbers[order]
        first = np.searchsorted(rising, rising)
        identities = np.empty(len(numbers), np.int64)
        identities[order] = rising << 32 | (np.arange(len(rising)) - first)
        result.append(identities)
    return result
