"""How many samples have how many tokens, in bins that the limits fall between."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

NUM_BINS = 16
# Samples longer than this many times the largest limit are not worth the room to show them apart.
SHOWN_BEYOND_LIMIT = 2


@dataclass(frozen=True, kw_only=True)
class Histogram:
    """Bin i holds the samples with more than `edges[i]` and at most `edges[i + 1]` tokens.

    Attributes:
        edges: rising; the limits are among them, so no bin lies on both sides of one.
        counts: one less than edges.
    """

    edges: tuple[int, ...]
    counts: tuple[int, ...]


def make_histogram(lengths: NDArray[np.int64], counts: NDArray[np.int64], limits: Sequence[int]) -> Histogram:
    """The histogram of samples of which `counts[i]` have `lengths[i]` tokens (rising)."""
    if not len(lengths):
        return Histogram(edges=(0,), counts=())
    edges = histogram_edges(int(lengths[-1]), limits)
    bins = np.searchsorted(edges, lengths) - 1
    return Histogram(
        edges=tuple(edges),
        counts=tuple(np.bincount(bins, weights=counts, minlength=len(edges) - 1).astype(int).tolist()),
    )


def histogram_edges(longest: int, limits: Sequence[int]) -> list[int]:
    """Edges from 0 to at least `longest`: 9 to 16 equal bins, cut at the limits, and one for all that is far longer."""
    top = shown_length(longest, limits)
    width = 1
    while width * NUM_BINS < top:
        width *= 2
    last = -(-top // width) * width
    edges = {*range(0, last + 1, width), *(limit for limit in limits if limit < last)}
    return sorted(edges | ({longest} if longest > last else set()))


def shown_length(longest: int, limits: Sequence[int]) -> int:
    """Up to how many tokens samples are shown apart."""
    largest = max(limits, default=longest)
    return longest if longest <= SHOWN_BEYOND_LIMIT * largest else largest
