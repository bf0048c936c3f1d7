"""Two groups of positions by visual advantage, with one mean each: many easy positions do not hide the few others.

The log-probability that the image adds to a label is large at few positions. The logit loss as mean(high) + mean(low)
gives the share of positions with the highest visual advantage the same weight as all others together.

N positions.
"""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from alignkd.storage.tools.select.keeping import share_of


def num_high(share: float, number: int) -> int:
    """Positions of the high group among so many: floor(share * number)."""
    return share_of(share, number)


def high_positions(advantage: NDArray[Any], share: float) -> NDArray[np.bool_]:
    """The positions with the highest visual advantage, bool [N]; of equal values the earlier position comes first.

    Args:
        advantage: log p(label | image) - log p(label | without), in nats, [N].
        share: share of the positions, from 0 to 1.
    """
    high = np.zeros(len(advantage), np.bool_)
    order = np.argsort(-np.asarray(advantage, np.float64), kind="stable")
    high[order[: num_high(share, len(advantage))]] = True
    return high


def group_factors(high_N: Tensor, num_high: int, num_low: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """Factors that turn a mean over all positions into the sum of the means of both groups, [N].

    The sum of factor times value over all positions, divided by their number, is mean(high) + mean(low). An empty group
    adds nothing.

    Args:
        high_N: bool, which positions are in the high group; those of a part of the positions may be given.
        num_high: size of the high group, of all positions.
        num_low: that of the low group.
        dtype: of the factors.
    """
    total = num_high + num_low
    # two numbers as arguments of kernels: a tensor of both would be a copy for which the host waits
    low_N = torch.full(high_N.shape, total / max(num_low, 1), dtype=dtype, device=high_N.device)
    return low_N.masked_fill(high_N, total / max(num_high, 1))
