"""Tokens drawn from the teacher: a pure function of seed, sample and position, whatever the batch or the device."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from teacher_dump.exact_mass import cumulative_mass, integer_mass


@dataclass(frozen=True, kw_only=True)
class DrawnTokens:
    """Draws at N positions in CSR form.

    Attributes:
        ids: int64 [E], the distinct tokens of each position, rising.
        counts: int64 [E], how often each was drawn.
        offsets: int64 [N + 1].
        entropy: float32 [N], of the whole distribution, in nats.
    """

    ids: NDArray[np.int64]
    counts: NDArray[np.int64]
    offsets: NDArray[np.int64]
    entropy: NDArray[np.float32]


def uniforms(seed: int, sample_index: int, num_positions: int, num_draws: int) -> NDArray[np.float64]:
    """Numbers of [0, 1), [N, draws]: row n belongs to the sample's n-th supervised position.

    Philox is a counter-based generator: the key (seed, sample) names the stream, position and draw the place in it.
    The raw 64-bit stream is used, which numpy promises never to change.
    """
    stream = np.random.Philox(key=np.array([seed, sample_index], np.uint64))
    raw = stream.random_raw(num_positions * num_draws).reshape(num_positions, num_draws)
    return (raw >> np.uint64(11)).astype(np.float64) * 2.0**-53


def draw_tokens(logits_NV: Tensor, uniforms_ND: NDArray[np.float64]) -> DrawnTokens:
    """With replacement, at temperature 1, by inverting the cumulative distribution at each uniform number.

    Args:
        logits_NV: unnormalised, any float dtype; finite.
        uniforms_ND: one number in [0, 1) per draw.
    """
    logprobs_NV = logits_NV.float().log_softmax(dim=-1)
    cumulative_NV = cumulative_mass(integer_mass(logprobs_NV))
    total_N1 = cumulative_NV[:, -1:]
    thresholds_ND = (torch.from_numpy(uniforms_ND).to(logits_NV.device) * total_N1.double()).floor().to(torch.int64)
    # right=True: the first token whose running mass is ABOVE the threshold, so one without mass is never drawn
    drawn_ND = torch.searchsorted(cumulative_NV, thresholds_ND.minimum(total_N1 - 1), right=True)
    exact_NV = logprobs_NV.double()
    entropy_N = -(exact_NV.exp() * exact_NV).sum(dim=-1)
    return _counted(drawn_ND.cpu().numpy(), entropy_N.float().cpu().numpy())


def _counted(drawn_ND: NDArray[np.int64], entropy_N: NDArray[np.float32]) -> DrawnTokens:
    sorted_ND = np.sort(drawn_ND, axis=1)
    is_new_ND = np.ones(sorted_ND.shape, np.bool_)
    is_new_ND[:, 1:] = sorted_ND[:, 1:] != sorted_ND[:, :-1]
    starts_E = np.flatnonzero(is_new_ND)
    return DrawnTokens(
        ids=sorted_ND[is_new_ND],
        counts=np.diff(starts_E, append=sorted_ND.size),
        offsets=np.concatenate([[0], np.cumsum(is_new_ND.sum(axis=1))]).astype(np.int64),
        entropy=entropy_N,
    )
