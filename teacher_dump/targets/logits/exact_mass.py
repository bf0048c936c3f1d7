"""Probabilities as integers, whose sums do not depend on the order of addition and so are reproducible on a GPU.

The position where a running sum crosses a threshold decides which entries a store holds, and a resumed dump must write
the same bytes. Cumulative sums of floats on a GPU differ in the last bit from run to run.
"""

import torch
from torch import Tensor

# keeps all bits of a float32 probability down to 2^-29; sums over any vocabulary are exact in float64
ONE = 2.0**52


def integer_mass(logprobs_NV: Tensor) -> Tensor:
    """int64 [N, V], probabilities in units of 2^-52."""
    return (logprobs_NV.double().exp_() * ONE).round_().to(torch.int64)


def cumulative_mass(mass_NK: Tensor) -> Tensor:
    """Running sums along the last axis, int64."""
    return mass_NK.cumsum(dim=-1)
