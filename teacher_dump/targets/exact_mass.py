"""Probabilities as integers: sums of integers do not depend on the order of addition, so a GPU gives them every time.

Where a running sum crosses a threshold decides which entries a store holds, and a resumed dump must write the same
bytes; cumulative sums of floats on a GPU differ from run to run in the last bit.
"""

import torch
from torch import Tensor

# A float32 probability keeps all its bits down to 2^-29, and the sum over any vocabulary stays exact in float64.
ONE = 2.0**52


def integer_mass(logprobs_NV: Tensor) -> Tensor:
    """int64 [N, V], probabilities in units of 2^-52."""
    return (logprobs_NV.double().exp_() * ONE).round_().to(torch.int64)


def cumulative_mass(mass_NK: Tensor) -> Tensor:
    """Running sums along the last axis, int64."""
    return mass_NK.cumsum(dim=-1)
