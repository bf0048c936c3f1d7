"""Tokens drawn from the teacher: a pure function of seed, sample and position, independent of batch and device."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from alignkd.storage.record.distributions import SampledLogits
from alignkd.teacher_dump.targets.logits.exact_mass import cumulative_mass, integer_mass
from alignkd.teacher_dump.targets.logits.truncation import smallest_ids

DRAWN, ENTROPY = "drawn", "entropy"
LARGEST_UINT8 = 2**8 - 1


def uniforms(seed: int, sample_index: int, num_positions: int, num_draws: int) -> NDArray[np.float64]:
    """Random numbers in [0, 1), [N, draws]; row n belongs to the sample's n-th supervised position.

    Philox is a counter-based generator: the key (seed, sample) selects the stream, position and draw the offset in it.
    The raw 64-bit stream is used, because numpy guarantees that it never changes.
    """
    stream = np.random.Philox(key=np.array([seed, sample_index], np.uint64))
    raw = stream.random_raw(num_positions * num_draws).reshape(num_positions, num_draws)
    return (raw >> np.uint64(11)).astype(np.float64) * 2.0**-53


def draw_tokens(logits_NV: Tensor, uniforms_ND: Tensor) -> dict[str, Tensor]:
    """Draw with replacement, at temperature 1, by inverting the cumulative distribution at each uniform number.

    Args:
        logits_NV: unnormalised, any float dtype; finite.
        uniforms_ND: float64 on the same device, one number in [0, 1) per draw.

    Returns:
        `DRAWN` int32 [N, D], and `ENTROPY` float32 [N] of the whole distribution, in nats.
    """
    logprobs_NV = logits_NV.float().log_softmax(dim=-1)
    cumulative_NV = cumulative_mass(integer_mass(logprobs_NV))
    total_N1 = cumulative_NV[:, -1:]
    thresholds_ND = (uniforms_ND * total_N1.double()).floor().to(torch.int64)
    # right=True: the first token whose running mass is above the threshold; a token without mass is never drawn
    drawn_ND = torch.searchsorted(cumulative_NV, thresholds_ND.minimum(total_N1 - 1), right=True)
    exact_NV = logprobs_NV.double()
    entropy_N = -(exact_NV.exp() * exact_NV).sum(dim=-1)
    return {DRAWN: drawn_ND.to(torch.int32), ENTROPY: entropy_N.float()}


def sampled_logits(table: Mapping[str, NDArray[Any]]) -> SampledLogits:
    """The record's form of draws: the distinct tokens of each position, ascending, and their counts.

    Raises:
        RecordError: not draws from a distribution.
    """
    sorted_ND = np.sort(table[DRAWN], axis=1)
    is_new_ND = np.ones(sorted_ND.shape, np.bool_)
    is_new_ND[:, 1:] = sorted_ND[:, 1:] != sorted_ND[:, :-1]
    ids, starts_E = sorted_ND[is_new_ND], np.flatnonzero(is_new_ND)
    counts = np.diff(starts_E, append=sorted_ND.size)
    return SampledLogits(
        ids=smallest_ids(ids),
        counts=counts.astype(np.uint8) if sorted_ND.shape[1] <= LARGEST_UINT8 else counts.astype(np.uint16),
        offsets=np.concatenate([[0], np.cumsum(is_new_ND.sum(axis=1))]).astype(np.int64),
        entropy=table[ENTROPY],
    )
