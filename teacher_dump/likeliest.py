"""The likeliest tokens of each position, in an order that depends on the numbers alone: best first, ties by id.

torch's `topk` is made for GPUs. On a CPU it takes six times as long over 1024 of 32,000 as numpy does, and which of
several equal tokens it takes at the cut is its own affair; in bfloat16 there often are some.

Shapes: N positions, V vocabulary, K tokens kept, C candidates, G groups of a row.
"""

from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

ID_BITS = 32
ID_MASK = (1 << ID_BITS) - 1
# more need fewer numbers to be put in order, but let more candidates through
GROUPS = 8
LARGEST_INT32 = 2**31 - 1

Integers = TypeVar("Integers", Tensor, NDArray[np.int32])


def likeliest_tokens(logits_NV: Tensor, count: int) -> Tensor:
    """Ids of the (at most) `count` likeliest tokens: int64 [N, K]. On a CPU ties at the cut go by id as well.

    Args:
        logits_NV: float32; of a row with NaN the ids mean nothing.
        count: K, at least 1.
    """
    count = min(count, logits_NV.shape[1])
    if logits_NV.device.type == "cpu":
        return torch.from_numpy(_on_host(logits_NV.numpy(), count))
    return _on_device(logits_NV, count)


def _on_device(logits_NV: Tensor, count: int) -> Tensor:
    """Waits for nothing: every row has as many candidates."""
    found = logits_NV.topk(count, dim=-1, sorted=False)
    bits_NK = (found.values + 0.0).view(torch.int32)
    keys_NK = _falling(bits_NK).to(torch.int64) << ID_BITS | found.indices
    return keys_NK.sort(dim=-1).values & ID_MASK


def _on_host(logits_NV: NDArray[np.float32], count: int) -> NDArray[np.int64]:
    keys_NK = np.empty((len(logits_NV), count), np.int64)
    for row, bound in enumerate(_bounds(logits_NV, count)):
        logits_V = logits_NV[row]
        ids_C = np.flatnonzero(~(logits_V < bound))  # not `>=`: in a row of NaN, too, there are enough
        bits_C = (logits_V[ids_C] + np.float32(0)).view(np.int32)
        keys_C = _falling(bits_C).astype(np.int64) << ID_BITS | ids_C
        keys_C.sort()
        keys_NK[row] = keys_C[:count]
    return keys_NK & ID_MASK


def _falling(bits: Integers) -> Integers:
    """Integers that fall as the numbers rise whose float32 bits are given; 0 and -0 differ, so add 0 to them first."""
    return ~(bits ^ (bits >> 31 & LARGEST_INT32))


def _bounds(logits_NV: NDArray[np.float32], count: int) -> NDArray[np.float32]:
    """Of each row a number that at least `count` of its tokens reach, the likeliest `count` among them: float32 [N].

    Each group of tokens whose best is among the `count` best of groups has one that reaches the last of these. With
    twice as many groups as tokens wanted or more, few others do.
    """
    num, vocab = logits_NV.shape
    size = max(1, min(GROUPS, vocab // (2 * count)))
    num_groups = vocab // size
    best_NG = logits_NV[:, : size * num_groups].reshape(num, size, num_groups).max(axis=1)
    cut = num_groups - count
    bounds_N: NDArray[np.float32] = np.partition(best_NG, cut, axis=1)[:, cut]
    return bounds_N
