"""What a store keeps of another tool's distributions: the most probable entries, normalised, and the tail.

N supervised positions, K the largest number of entries of a position.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from alignkd.storage.record.distributions import TruncatedLogits
from alignkd.teacher_dump.imported.alignment import NO_ROW
from alignkd.teacher_dump.imported.row import ForeignRow
from alignkd.vlm.errors import SampleError

# probabilities that are normalised over the vocabulary sum to at most 1 plus rounding
MASS_TOLERANCE = 1e-3
# a probability of float32 is known to half a unit of its last place
ROUNDING = 2.0**-24


@dataclass(frozen=True, kw_only=True)
class Kept:
    """What is kept of each distribution.

    Attributes:
        top_k: number of most probable tokens; the label is kept too where the file has it.
        knows_tail: whether the values are normalised over the whole vocabulary; else they are normalised over the
            entries.
        exponent: the files' probabilities to this power are proportional to the teacher's; 1 leaves them unchanged.
        vocab_size: V.
        num_tokens: entries of the tokenizer. Columns after them are padding: a dump gives them no mass, and here theirs
            counts as part of the tail.
    """

    top_k: int
    knows_tail: bool
    exponent: float
    vocab_size: int
    num_tokens: int


def logits_of(row: ForeignRow, chosen_N: NDArray[np.int64], labels_N: NDArray[np.int32], kept: Kept) -> TruncatedLogits:
    """The record's distributions.

    Args:
        chosen_N: distribution of the row at each supervised position.
        labels_N: the token that follows each position.

    Raises:
        SampleError: a position has no distribution, or one that is none.
    """
    if len(missing := np.flatnonzero(chosen_N == NO_ROW)):
        raise SampleError(
            f"{row.where}: has no distribution at {len(missing)} of {len(chosen_N)} supervised positions; the first is "
            f"that of supervised token {int(missing[0])}"
        )
    ids_NK, logprobs_NK = _padded(row, chosen_N)
    # ids beyond all columns stay: they are refused when the record is written
    is_token_NK = (ids_NK < kept.num_tokens) | (ids_NK >= kept.vocab_size)
    there_NK = (ids_NK >= 0) & (logprobs_NK != -np.inf) & is_token_NK
    _check(row, ids_NK, logprobs_NK, there_NK)
    masked_NK = np.where(there_NK, logprobs_NK, -np.inf)
    order_NK = np.argsort(-masked_NK, axis=1, kind="stable")
    ids_NK, masked_NK = (np.take_along_axis(values, order_NK, 1) for values in (ids_NK, masked_NK))
    wanted_NK = (np.arange(ids_NK.shape[1]) < kept.top_k) | (ids_NK == labels_N[:, None])
    taken_NK = wanted_NK & (masked_NK != -np.inf)
    if kept.knows_tail:
        tail_N: NDArray[np.float32] | None = _tail(row, masked_NK, taken_NK, kept)
    else:
        tail_N = None
        masked_NK = _normalised(masked_NK * kept.exponent, taken_NK)
    return TruncatedLogits(
        ids=ids_NK[taken_NK].astype(np.uint32),
        logprobs=masked_NK[taken_NK].astype(np.float32),
        offsets=np.concatenate([[0], np.cumsum(taken_NK.sum(1))]).astype(np.int64),
        tail_logmass=tail_N,
    )


def _padded(row: ForeignRow, chosen_N: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Ids and log-probabilities of the chosen distributions, [N, K]; -1 and -inf where padded."""
    starts_N, stops_N = row.offsets[chosen_N], row.offsets[chosen_N + 1]
    widest = int((stops_N - starts_N).max(initial=0))
    place_NK = starts_N[:, None] + np.arange(widest)
    inside_NK = place_NK < stops_N[:, None]
    place_NK = np.where(inside_NK, place_NK, 0)
    if not len(row.ids):
        return np.full(place_NK.shape, -1, np.int64), np.full(place_NK.shape, -np.inf)
    return (
        np.where(inside_NK, row.ids[place_NK], -1),
        np.where(inside_NK, row.logprobs[place_NK].astype(np.float64), -np.inf),
    )


def _check(
    row: ForeignRow, ids_NK: NDArray[np.int64], logprobs_NK: NDArray[np.float64], there_NK: NDArray[np.bool_]
) -> None:
    """Refuse entries that are not a distribution.

    Raises:
        SampleError: names the position.
    """
    unlike_NK = np.where(there_NK, ids_NK, -1 - np.arange(ids_NK.shape[1]))
    repeated_N = (np.diff(np.sort(unlike_NK, axis=1), axis=1) == 0).any(1)
    endless_N = (there_NK & ~np.isfinite(logprobs_NK)).any(1)
    for wrong_N, problem in (
        (~there_NK.any(1), "the distribution has no entries"),
        (endless_N, "a log-probability is not finite"),
        (repeated_N, "a token is listed twice"),
    ):
        if wrong_N.any():
            raise SampleError(f"{row.where}: supervised token {int(np.flatnonzero(wrong_N)[0])}: {problem}")


def _tail(
    row: ForeignRow, logprobs_NK: NDArray[np.float64], taken_NK: NDArray[np.bool_], kept: Kept
) -> NDArray[np.float32]:
    """Log of the mass outside the taken entries, float32 [N].

    Raises:
        SampleError: the entries hold more than all mass.
    """
    probs_NK = np.exp(logprobs_NK)
    whole_N = probs_NK.sum(1)
    if len(beyond := np.flatnonzero(whole_N > 1 + MASS_TOLERANCE)):
        raise SampleError(
            f"{row.where}: supervised token {int(beyond[0])}: probabilities sum to {whole_N[beyond[0]]:.4f}, so they "
            "are not normalised over the whole vocabulary; give --tail unknown if they are normalised over other tokens"
        )
    counts_N = taken_NK.sum(1)
    # a tail below the rounding of the sum is not known, and must not become 0: reverse KL would be infinite
    mass_N = np.maximum(1 - np.where(taken_NK, probs_NK, 0.0).sum(1), counts_N * ROUNDING)
    tail: NDArray[np.float32] = np.where(counts_N == kept.num_tokens, -np.inf, np.log(mass_N)).astype(np.float32)
    return tail


def _normalised(logprobs_NK: NDArray[np.float64], taken_NK: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Log-probabilities over the taken entries of each position; other entries have no meaning."""
    masked_NK = np.where(taken_NK, logprobs_NK, -np.inf)
    highest_N1 = masked_NK.max(1, keepdims=True, initial=-np.inf)
    sums_N1 = highest_N1 + np.log(np.exp(masked_NK - highest_N1).sum(1, keepdims=True))
    normalised: NDArray[np.float64] = logprobs_NK - sums_N1
    return normalised
