"""Cosines between hidden states, as the dump stores them and as the losses compute them."""

import torch
from torch import Tensor

# A state of a smaller norm is divided by it: its cosines, and their gradients, stay finite.
SMALLEST_NORM = 1e-6


def unit_rows(states: Tensor) -> Tensor:
    """Each state [..., D] divided by its norm, float32 (float64 for float64 input)."""
    states = states if states.dtype == torch.float64 else states.float()
    return states / states.norm(dim=-1, keepdim=True).clamp(min=SMALLEST_NORM)


def cosines(rows: Tensor, columns: Tensor) -> Tensor:
    """Cosine of every row [..., R, D] with every column [..., C, D]: [..., R, C], in the dtype of `unit_rows`."""
    return unit_rows(rows) @ unit_rows(columns).transpose(-1, -2)
