"""Cosines of states: of all pairs of vision tokens of an image (relations), and of any two lists of states.

Shapes: I images of P tokens each, D width of a state, R = P (P - 1) / 2 pairs.
"""

import torch
from torch import Tensor

# smallest norm by which a state is divided
SMALLEST_NORM = 1e-6


def unit_rows(states: Tensor) -> Tensor:
    """States [..., D] divided by their norms, or by 1e-6 where a norm is smaller."""
    norms: Tensor = states.norm(dim=-1, keepdim=True)
    return states / norms.clamp(min=SMALLEST_NORM)


def upper_triangle(gram_IPP: Tensor) -> Tensor:
    """The entries above the diagonal of each matrix, row by row: [I, R]."""
    tokens = gram_IPP.shape[-1]
    rows, columns = torch.triu_indices(tokens, tokens, 1, device=gram_IPP.device).unbind()
    return gram_IPP[:, rows, columns]


def cosine_triangle(states_IPD: Tensor) -> Tensor:
    """Cosines of all pairs of states of each image, (0, 1), (0, 2) ... (P - 2, P - 1): [I, R]."""
    units_IPD = unit_rows(states_IPD)
    return upper_triangle(units_IPD @ units_IPD.transpose(1, 2))


def cosines(rows: Tensor, columns: Tensor) -> Tensor:
    """Cosine of every state [..., A, D] with every state [..., B, D]: [..., A, B], float32 (float64 for float64)."""
    units = [unit_rows(states if states.dtype == torch.float64 else states.float()) for states in (rows, columns)]
    return units[0] @ units[1].transpose(-1, -2)


def num_pairs(tokens: int) -> int:
    """R."""
    return tokens * (tokens - 1) // 2
