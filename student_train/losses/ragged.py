"""Entries of ragged length per position, padded into a matrix without waiting for the accelerator."""

import torch
from torch import Tensor


def pad_ragged(values_E: Tensor, offsets: Tensor, widest: int) -> tuple[Tensor, Tensor]:
    """Entries [E], of which position n owns `offsets[n]:offsets[n + 1]`, padded with 0 to the widest position.

    Args:
        offsets: int64 [N + 1], on the device of the values.
        widest: K, the most entries of a position.

    Returns:
        Values [N, K] and a mask bool [N, K], False where padded.
    """
    slots_K = torch.arange(widest, device=offsets.device)
    kept_NK = slots_K < offsets.diff()[:, None]
    place_NK = torch.where(kept_NK, offsets[:-1, None] + slots_K, 0)
    return values_E[place_NK].masked_fill_(~kept_NK, 0), kept_NK
