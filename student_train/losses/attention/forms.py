"""How far the student's attention rows are from the teacher's: the forms of the attention loss, row by row.

`squared_error.py` has the squared error of eq. 1, and `maps.py` the cosine of maps.

Shape letters: B samples, H heads, r rows, C columns.
"""

import torch
from torch import Tensor
from torch.nn import functional


def kl_with_rest(teacher_BHrC: Tensor, student_BHrC1: Tensor) -> Tensor:
    """KL(teacher || student) of each row over its columns and one outcome for all other keys, [B, H, r].

    Args:
        teacher_BHrC: probabilities of the columns, 0 where padded; the rest of each row is the last outcome.
        student_BHrC1: logarithms of the student's outcomes (`fused.py`). An outcome that the student's mask
            excludes, -inf, is left out: it could only be an infinite loss.
    """
    rest_BHr1 = (1 - teacher_BHrC.sum(-1, keepdim=True)).clamp_min(0)
    excluded = student_BHrC1.isinf()
    outcomes_BHrC1 = torch.cat([teacher_BHrC, rest_BHr1], dim=-1).masked_fill(excluded, 0.0)
    student_BHrC1 = student_BHrC1.masked_fill(excluded, 0.0)
    return (outcomes_BHrC1.xlogy(outcomes_BHrC1) - outcomes_BHrC1 * student_BHrC1).sum(-1)


def row_cosine(teacher_BHrC: Tensor, student_BHrC: Tensor) -> Tensor:
    """1 - cosine of each row, [B, H, r]; 1 for a row of zeros."""
    return 1 - functional.cosine_similarity(teacher_BHrC, student_BHrC, dim=-1)
