"""Histogram of the number of tokens; no bin contains a limit in its interior."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

NUM_BINS = 16
# Samples longer than this multiple of the largest limit share one bin.
SHOWN_BEYOND_LIMIT = 2


@dataclass(frozen=True, kw_only=True)
class Histogram:
    """Bin i counts the samples with more than `edges[i]` and at most `edges[i + 1]` tokens.

    Attributes:
        edges: ascending; they include the limits.
        counts: samples per bin, one fewer than edges.
    """

    edges: tuple[int, ...]
    counts: tuple[int, ...]


def make_histogram(lengths: NDArray[np.int64], counts: NDArray[np.int64], limits: Sequence[int]) -> Histogram:
    """The histogram of samples of which `counts[i]` have `lengths[i]` tokens (ascending)."""
    if not len(lengths):
        return Histogram(edges=(0,), counts=())
    edges = histogram_edges(int(lengths[-1]), limits)
    bins = np.searchsorted(edges, lengths) - 1
    return Histogram(
        edges=tuple(edges),
        counts=tuple(np.bincount(bins, weights=counts, minlength=len(edges) - 1).astype(int).tolist()),
    )


def histogram_edges(longest: int, limits: Sequence[int]) -> list[int]:
    """Edges from 0 to at least `longest`: 9 to 16 equal bins, split at the limits; one for much longer samples."""
    top = shown_length(longest, limits)
    width = 1
    while width * NUM_BINS < top:
        width *= 2
    last = -(-top // width) * width
    edges = {*range(0, last + 1, width), *(limit for limit in limits if limit < last)}
    return sorted(edges | ({longest} if longest > last else set()))


def shown_length(longest: int, limits: Sequence[int]) -> int:
    """The length up to which samples are shown in separate bins."""
    largest = max(limits, default=longest)
    return longest if longest <= SHOWN_BEYOND_LIMIT * largest else largest
