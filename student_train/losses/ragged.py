"""Entries of ragged length per position, padded into a matrix without waiting for the accelerator."""

import torch
from torch import Tensor


def ragged_places(offsets: Tensor, widest: int) -> tuple[Tensor, Tensor]:
    """Index of each position's entries; position n owns the entries `offsets[n]:offsets[n + 1]`.

    Args:
        offsets: int64 [N + 1].
        widest: K, at least the largest number of entries of a position.

    Returns:
        int64 [N, K], 0 where padded, and bool [N, K], False where padded.
    """
    slots_K = torch.arange(widest, device=offsets.device)
    kept_NK = slots_K < offsets.diff()[:, None]
    return (offsets[:-1, None] + slots_K).mul_(kept_NK), kept_NK
