"""Histograms of a column: of all samples, and of those that the rest of a filter keeps."""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

MAX_BINS = 500


@dataclass(frozen=True, kw_only=True)
class Histogram:
    """Counts of samples by the value of a column.

    Attributes:
        column: name of the column.
        edges: of the bins, ascending, one more than bins; empty without a value. A bin includes its left edge, the last
            bin both.
        counts: samples in each bin.
        matching: those of them that pass the filter without its range of this column.
        without: samples without a value.
    """

    column: str
    edges: tuple[float, ...]
    counts: tuple[int, ...]
    matching: tuple[int, ...]
    without: int

    def as_json(self) -> dict[str, Any]:
        """The histogram as values of JSON."""
        return asdict(self)


def histogram_of(
    column: str,
    values: NDArray[np.float64],
    kept: NDArray[np.bool_],
    bins: int,
    *,
    whole_numbers: bool,
    logarithmic: bool,
) -> Histogram:
    """Count values, NaN where there is none.

    Args:
        kept: which of them match.
        bins: most bins.
        whole_numbers: the edges are whole numbers, so that every bin holds equally many of them.
        logarithmic: the edges have one ratio, where all values are positive.
    """
    known = ~np.isnan(values)
    there = values[known]
    without = len(values) - len(there)
    if not len(there):
        return Histogram(column=column, edges=(), counts=(), matching=(), without=without)
    edges = bin_edges(float(there.min()), float(there.max()), bins, whole_numbers, logarithmic)
    # the bin of each value by the edges themselves, so that a range of edges keeps exactly the samples of its bins
    place = np.clip(np.searchsorted(edges, there, side="right") - 1, 0, len(edges) - 2)
    counts = np.bincount(place, minlength=len(edges) - 1)
    matching = np.bincount(place[kept[known]], minlength=len(edges) - 1)
    return Histogram(
        column=column,
        edges=tuple(edges.tolist()),
        counts=tuple(counts.tolist()),
        matching=tuple(matching.tolist()),
        without=without,
    )


def bin_edges(
    smallest: float, largest: float, bins: int, whole_numbers: bool, logarithmic: bool
) -> NDArray[np.float64]:
    """Edges of at most `bins` bins that hold all values, float64 [bins + 1], strictly ascending."""
    bins = min(max(1, bins), MAX_BINS)
    if whole_numbers:
        width = max(1.0, np.ceil((largest - smallest + 1) / bins))
        count = int(np.ceil((largest - smallest + 1) / width))
        whole: NDArray[np.float64] = smallest + width * np.arange(count + 1)
        return whole
    if smallest == largest:
        return np.array([smallest, np.nextafter(largest, np.inf)])
    if logarithmic and smallest > 0:
        edges = np.exp(np.linspace(np.log(smallest), np.log(largest), bins + 1))
    else:
        edges = np.linspace(smallest, largest, bins + 1)
    edges[0], edges[-1] = smallest, largest
    return np.unique(edges)
