"""The most probable tokens on a CPU, where torch's `topk` took several times as long and most of a dump's time.

The maxima of groups of tokens give a bound that enough tokens reach. Tokens that reach it are candidates; few of them
are dropped after sorting.

Shapes: N positions, V vocabulary, K tokens kept, C candidates, G groups of tokens.
"""

from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

ID_BITS = 32
ID_MASK = (1 << ID_BITS) - 1
LARGEST_INT32 = 2**31 - 1
# tokens per group: larger groups mean fewer maxima to search for the bound, but more candidates
GROUP_SIZE = 8
FEW = 64
# more than the rounding error of a sum of float32 probabilities
SLACK = 1e-4

Integers = TypeVar("Integers", torch.Tensor, NDArray[np.int32])
Floats = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class Enough:
    """When fewer entries of a row suffice.

    Attributes:
        mass: minimum mass of the entries.
        entries: minimum number of entries.
    """

    mass: float
    entries: int


def in_order(bits: Integers) -> Integers:
    """Map float32 bits to integers of the same order, and back; 0 and -0 differ."""
    return bits ^ (bits >> 31 & LARGEST_INT32)


def select(logits_NV: Floats, probs_NV: Floats, count: int, enough: Enough | None) -> tuple[NDArray[np.int64], Floats]:
    """The most probable tokens of each row, ties by id: int64 ids [N, K], best first, and their logits.

    If fewer than K suffice, the best token fills the rest with a logit of -inf.

    Args:
        logits_NV, probs_NV: values before and after softmax.
        count: K, 1..V.
    """
    num, vocab = logits_NV.shape
    is_candidate_NV = probs_NV < _bounds(probs_NV, count, enough)[:, None]
    np.logical_not(is_candidate_NV, out=is_candidate_NV)  # not `>=`, so that a row of NaN also has candidates
    places = np.flatnonzero(is_candidate_NV)
    starts = np.arange(num) * vocab
    ends_N = places.searchsorted(starts + vocab)
    counts_N = np.diff(ends_N, prepend=0)
    bits = (logits_NV.ravel()[places] + np.float32(0)).view(np.int32)
    keys = ~in_order(bits).astype(np.int64) << ID_BITS | places - np.repeat(starts, counts_N)
    keys_NK = np.empty((num, count), np.int64)
    for row, end in enumerate(ends_N):
        keys_C = keys[end - counts_N[row] : end]
        keys_C.sort()
        keys_NK[row, : len(keys_C)], keys_NK[row, len(keys_C) :] = keys_C[:count], keys_C[0]
    ids_NK = keys_NK & ID_MASK
    logits_NK = in_order((~keys_NK >> ID_BITS).astype(np.int32)).view(np.float32)
    logits_NK[np.arange(count) >= counts_N[:, None]] = -np.inf
    return ids_NK, logits_NK


def _bounds(probs_NV: Floats, count: int, enough: Enough | None) -> Floats:
    """For each row [N] a probability that at least `count` of its tokens reach, or fewer if they are `enough`.

    Each of the `count` groups with the largest maxima has a token that reaches the smallest of these maxima; with at
    least twice as many groups, few other tokens reach it. The mass of a group is at least its maximum.
    """
    num, vocab = probs_NV.shape
    size = max(1, min(GROUP_SIZE, vocab // (2 * count)))
    num_groups = vocab // size
    best_NG = probs_NV[:, : size * num_groups].reshape(num, size, num_groups).max(axis=1)
    cut = num_groups - count
    top_NK = np.partition(best_NG, cut, axis=1)[:, cut:]
    if enough is None or (few := max(FEW, enough.entries)) >= count:
        return top_NK[:, 0]
    # two calls, because numpy is slow for several positions in one call
    few_NF = np.partition(top_NK, count - few, axis=1)[:, count - few :]
    return np.where(few_NF.sum(axis=1) >= enough.mass + SLACK, few_NF[:, 0], top_NK[:, 0])
