"""Selected attention of some rows, and the gradient of their scores from that of what was selected.

Shape letters as in `fused.py`: B samples, H heads, r rows of a chunk, C columns, L positions.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from alignkd.vlm.attention.attention_rows import RowInputs, expanded_columns, mask_scores, weights_of_scores


@contextmanager
def sums_of_one() -> Iterator[None]:
    """Scattered sums that repeat to the bit without torch's deterministic form: each key gets one number that is not 0.

    Columns differ, and padded ones add 0. The deterministic form on CUDA would build and sort four int64 indices for
    each number: about a gigabyte for a chunk of rows.
    """
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    if not before[0]:
        yield
        return
    torch.use_deterministic_algorithms(False)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])


class AttentionColumns:
    """The attention to the columns, `values_BHrC`; both are computed in the memory of the scores."""

    def __init__(self, scores_BHrL: Tensor, inputs: RowInputs, cols_BC: Tensor) -> None:
        self._weights_BHrL, self._sum_BHr1 = weights_of_scores(scores_BHrL, inputs)
        self._columns_BHrC = expanded_columns(cols_BC, self._weights_BHrL)
        self.values_BHrC = self._weights_BHrL.gather(3, self._columns_BHrC).div_(self._sum_BHr1)

    def grad_scores(self, grad_BHrC: Tensor, scaling: float) -> Tensor:
        """[B, H, r, L], in the memory of the scores: `scaling` times p_l * (g_l - sum over c of p_c * g_c).

        g is the gradient of `values_BHrC`, 0 at keys that are no columns.
        """
        weighed_BHrC = grad_BHrC.mul(self.values_BHrC).mul_(scaling)
        self._weights_BHrL.mul_(-weighed_BHrC.sum(-1, keepdim=True) / self._sum_BHr1)
        with sums_of_one():
            return self._weights_BHrL.scatter_add_(3, self._columns_BHrC, weighed_BHrC)


class AttentionOutcomes:
    """Logarithms of the attention to each column and to all other keys together, `values_BHrC` [B, H, r, C + 1].

    The last is the logarithm of a sum over the other scores. As 1 minus the columns' sum it would have no digit left
    where the columns have nearly all attention.

    Args:
        real_BC: bool, False for padded columns, which are no outcomes and repeat any key.
    """

    def __init__(self, scores_BHrL: Tensor, inputs: RowInputs, cols_BC: Tensor, real_BC: Tensor) -> None:
        mask_scores(scores_BHrL, inputs)
        self._scores_BHrL, self._real_BC = scores_BHrL, real_BC
        self._columns_BHrC = expanded_columns(cols_BC, scores_BHrL)
        self._sum_BHr1 = scores_BHrL.logsumexp(-1, keepdim=True)
        is_column_BL = torch.zeros_like(scores_BHrL[:, 0, 0], dtype=torch.int32).scatter_add_(1, cols_BC, real_BC.int())
        self._others_BHrL = scores_BHrL.masked_fill(is_column_BL.bool()[:, None, None], -torch.inf)
        rest_BHr1 = self._others_BHrL.logsumexp(-1, keepdim=True)
        # a row that attends to columns alone has no other key
        self._rest_BHr1 = rest_BHr1.masked_fill(rest_BHr1.isinf(), 0.0)
        values_BHrC = torch.cat([scores_BHrL.gather(3, self._columns_BHrC), rest_BHr1], dim=-1)
        self.values_BHrC = values_BHrC.sub_(self._sum_BHr1)

    def grad_scores(self, grad_BHrC: Tensor, scaling: float) -> Tensor:
        """[B, H, r, L], in the memory of the scores: `scaling` times g_o * (share of l in its outcome o) - p_l * G.

        g is the gradient of `values_BHrC`, and G its sum over all outcomes.
        """
        grad_BHrC = grad_BHrC * scaling
        probabilities_BHrL = self._scores_BHrL.sub_(self._sum_BHr1).exp_()
        shares_BHrL = self._others_BHrL.sub_(self._rest_BHr1).exp_().mul_(grad_BHrC[..., -1:])
        found_BHrL = probabilities_BHrL.mul_(-grad_BHrC.sum(-1, keepdim=True)).add_(shares_BHrL)
        columns_BHrC = grad_BHrC[..., :-1].masked_fill(~self._real_BC[:, None, None], 0.0)
        with sums_of_one():
            return found_BHrL.scatter_add_(3, self._columns_BHrC, columns_BHrC)
