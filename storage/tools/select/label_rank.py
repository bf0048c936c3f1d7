"""Rank of each label among all tokens for the teacher: 1 where no token is more probable.

N supervised positions, V vocabulary. Truncated logits keep the most probable tokens of a position, and the label
wherever it is. The rank of a label that is less probable than all other kept tokens has bounds only: tokens that are
not kept may be more probable. There are at most as many of them as the tail's mass is a multiple of the label's
probability.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from alignkd.storage.read.logprobs import ROWS, Distribution
from alignkd.storage.record.distributions import SampledLogits, TruncatedLogits

UNKNOWN = np.iinfo(np.int64).max


@dataclass(frozen=True, kw_only=True, eq=False)
class RankBounds:
    """What is known about the rank of each label.

    Attributes:
        least: smallest possible rank, int64 [N].
        most: largest possible rank, int64 [N]; equal to `least` where the rank is known.
    """

    least: NDArray[np.int64]
    most: NDArray[np.int64]

    def within(self, k: int) -> NDArray[np.bool_]:
        """Where the rank is certainly at most k, bool [N]."""
        return self.most <= k

    def undecided(self, k: int) -> NDArray[np.bool_]:
        """Where the rank may be at most k or above, bool [N]."""
        return (self.least <= k) & (self.most > k)


def label_ranks(found: Distribution, labels: NDArray[np.int64], top_k: int | None = None) -> RankBounds:
    """Ranks of the labels [N]; tokens that are as probable as the label are not before it.

    Args:
        top_k: number of tokens that the store keeps besides a label that is not among them; None if it varies. A
            position with no more entries has its label among them.

    Raises:
        ValueError: the distribution is stored as draws.
    """
    if isinstance(found, SampledLogits):
        raise ValueError("draws do not order the tokens; choose a store of another kind of logits")
    if isinstance(found, TruncatedLogits):
        return _of_entries(found, labels, top_k)
    ranks = _of_logits(found, labels)
    return RankBounds(least=ranks, most=ranks)


def _of_logits(logits: NDArray[Any], labels: NDArray[np.int64]) -> NDArray[np.int64]:
    ranks = np.empty(len(labels), np.int64)
    for start in range(0, len(labels), ROWS):
        rows = logits[start : start + ROWS]
        own = rows[np.arange(len(rows)), labels[start : start + ROWS]]
        ranks[start : start + ROWS] = 1 + (rows > own[:, None]).sum(1)
    return ranks


def _of_entries(found: TruncatedLogits, labels: NDArray[np.int64], top_k: int | None) -> RankBounds:
    counts, logprobs = np.diff(found.offsets), found.logprobs.astype(np.float64)
    position = np.repeat(np.arange(len(labels)), counts)
    is_label = found.ids == labels[position]
    own = np.full(len(labels), -np.inf)
    own[position[is_label]] = logprobs[is_label]
    before = np.bincount(position[logprobs > own[position]], minlength=len(labels)).astype(np.int64)
    # the label is certainly one of the most probable tokens if a kept token is not before it, or if it was not added
    is_last = before == counts - 1
    added = counts > (1 if top_k is None or found.tail_logmass is None else top_k)
    kept = np.bincount(position[is_label], minlength=len(labels)) > 0
    beyond = _most_beyond(found, own)
    beyond[kept & ~(is_last & added)] = 0
    least = 1 + before
    most = np.where(beyond == UNKNOWN, UNKNOWN, least + np.minimum(beyond, UNKNOWN // 2))
    return RankBounds(least=least, most=most)


def _most_beyond(found: TruncatedLogits, own: NDArray[np.float64]) -> NDArray[np.int64]:
    """Most tokens outside the entries that are more probable than the label, int64 [N]; UNKNOWN where unlimited."""
    beyond = np.full(len(own), UNKNOWN, np.int64)
    if found.tail_logmass is None:
        return beyond
    tail = found.tail_logmass.astype(np.float64)
    finite = np.isfinite(own)
    multiple = np.exp(np.minimum(tail[finite] - own[finite], 40.0))
    # each of them has more than the label's mass: strictly fewer than the multiple if that is a whole number
    beyond[finite] = np.maximum(np.ceil(multiple) - 1, 0).astype(np.int64)
    return beyond
