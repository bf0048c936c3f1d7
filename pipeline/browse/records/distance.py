"""How far two distributions of the next token are apart, where a store may know only a part of them.

Shapes: N supervised positions, K known tokens of a position.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

# ids [K], ascending, and their probabilities, float64 [K]
Known = tuple[NDArray[np.int64], NDArray[np.float64]]


def known(ids: NDArray[Any], probs: NDArray[np.float64]) -> Known:
    """The known tokens of a position, sorted by id."""
    order = np.argsort(ids, kind="stable")
    return ids[order].astype(np.int64), probs[order]


def total_variation(a: Known, b: Known) -> float:
    """Half the sum of the differences of probability, over the tokens that both know, and all others as one outcome.

    Where both know every token this is the total variation distance; otherwise it is at most that.
    """
    _, in_a, in_b = np.intersect1d(a[0], b[0], assume_unique=True, return_indices=True)
    ours, theirs = a[1][in_a], b[1][in_b]
    others = abs(float(ours.sum()) - float(theirs.sum()))
    return 0.5 * (float(np.abs(ours - theirs).sum()) + others)


def total_variations(a: Iterable[Known], b: Sequence[Known]) -> list[float]:
    """`total_variation` position by position."""
    return [total_variation(ours, theirs) for ours, theirs in zip(a, b, strict=True)]
