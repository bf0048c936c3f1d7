"""Weights of attention rows by the teacher's attention: rows that are sharp, or far from the mean map, count more.

Shape letters: B samples, H heads, r rows, C columns.
"""

from typing import Literal

import torch
from torch import Tensor

RowWeights = Literal["none", "sharpness", "surprise"]


def sharpness(teacher_BHrC: Tensor, num_cols_B: Tensor) -> Tensor:
    """1 - H / ln C, [B, H, r]: H is the entropy of the row over its C real columns, renormalised.

    0 for an even row, 1 if a single column has all of the row's attention. A row without attention to the columns is 0.

    Args:
        teacher_BHrC: probabilities, 0 where padded.
        num_cols_B: real columns of each sample, integers.
    """
    shares_BHrC, attends_BHr = _shares(teacher_BHrC)
    entropy_BHr = -shares_BHrC.xlogy(shares_BHrC).sum(-1)
    largest_B = num_cols_B.clamp_min(2).to(entropy_BHr.dtype).log()
    relative_BHr = entropy_BHr / largest_B[:, None, None]
    return (1 - relative_BHr).clamp_min(0).masked_fill(~attends_BHr, 0.0)


def surprise(teacher_BHrC: Tensor, num_cols_B: Tensor, mean_map_HC: Tensor) -> Tensor:
    """KL(row || mean map), [B, H, r]: how far a renormalised row is from what the head attends to in any sample.

    Args:
        teacher_BHrC: probabilities, 0 where padded; a sample with several images has their columns side by side.
        num_cols_B: real columns of each sample, integers.
        mean_map_HC: mean of renormalised rows through one image; it sums to 1, and each of several images gets an equal
            share of it.
    """
    shares_BHrC, attends_BHr = _shares(teacher_BHrC)
    repeats = -(-shares_BHrC.shape[-1] // mean_map_HC.shape[-1])
    expected_HC = mean_map_HC.repeat(1, repeats)[:, : shares_BHrC.shape[-1]]
    # a column that no row of the reference attends to would be an infinite surprise
    expected_HC = expected_HC.clamp_min(torch.finfo(torch.float16).tiny)
    divergence_BHr = (shares_BHrC.xlogy(shares_BHrC) - shares_BHrC * expected_HC.log()[None, :, None]).sum(-1)
    images_B = (num_cols_B.to(divergence_BHr.dtype) / mean_map_HC.shape[-1]).clamp_min(1)
    divergence_BHr = divergence_BHr + images_B.log()[:, None, None]
    return divergence_BHr.clamp_min(0).masked_fill(~attends_BHr, 0.0)


def renormalised(teacher_BHrC: Tensor) -> Tensor:
    """Each row divided by its sum; a row of zeros stays one."""
    return _shares(teacher_BHrC)[0]


def _shares(teacher_BHrC: Tensor) -> tuple[Tensor, Tensor]:
    """Rows divided by their sum, and which rows have one."""
    sums_BHr1 = teacher_BHrC.sum(-1, keepdim=True)
    attends_BHr1 = sums_BHr1 > 0
    return teacher_BHrC / sums_BHr1.masked_fill(~attends_BHr1, 1.0), attends_BHr1[..., 0]
