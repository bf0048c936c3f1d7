"""Eq. 1 on stored targets, some rows at a time: neither side's attention is ever held as a whole.

Shape letters as in `alignkd.student_train.data.targets`; r rows of a chunk, Hs heads of the student.
"""

from torch import Tensor

from alignkd.student_train.data.targets import AttentionTargets
from alignkd.student_train.losses.attention import attention_loss
from alignkd.student_train.losses.fused_attention import fused_attention_loss
from alignkd.student_train.losses.loss_sum import LossSum
from alignkd.student_train.objective.adapters import Adapters


def attention_term(
    adapters: Adapters,
    targets: AttentionTargets,
    query_BHRd: Tensor,
    key_BHLd: Tensor,
    *,
    scaling: float,
    chunk_bytes: int,
) -> LossSum:
    """Squared error between the adapted teacher's attention and the student's.

    Args:
        query_BHRd, key_BHLd: the student's, of the targets' rows and of all positions, rotated.
        scaling: of its scores.
        chunk_bytes: most that a chunk's attention over all positions, or its targets, take in float32, but at least
            one row's.
    """
    coded_BRHC = targets.stored_BRHC
    num, _, teacher_heads, cols = coded_BRHC.shape
    heads, length = key_BHLd.shape[1:3]
    at_once = max(1, chunk_bytes // (4 * num * max(heads * length, teacher_heads * cols)))

    def loss_of(student_BHrC: Tensor, rows: slice, weight_ST: Tensor, bias_S: Tensor) -> Tensor:
        teacher_BrTC = coded_BRHC.rows(rows).decode().to(weight_ST.dtype)
        adapted_BrHC = weight_ST @ teacher_BrTC + bias_S[:, None]
        num_rows_B = [min(max(total - rows.start, 0), at_once) for total in targets.num_rows_B]
        return attention_loss(adapted_BrHC.transpose(1, 2), student_BHrC, num_rows_B, targets.num_cols_B).total

    total = fused_attention_loss(
        query_BHRd,
        key_BHLd,
        targets.rows_BR,
        targets.cols_BC,
        loss_of,
        adapters.attention_weights(),
        scaling=scaling,
        rows_at_once=at_once,
    )
    pairs = sum(rows * cols for rows, cols in zip(targets.num_rows_B, targets.num_cols_B, strict=True))
    return LossSum(total, pairs * heads)
