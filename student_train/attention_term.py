"""Eq. 1 on stored targets, some rows at a time: the teacher's attention is never decoded and adapted as a whole.

Shape letters as in `student_train.targets`; r rows of a chunk.
"""

from torch import Tensor, stack
from torch.utils.checkpoint import checkpoint

from student_train.adapters import Adapters
from student_train.decode import CodedTensor
from student_train.losses.attention import attention_loss
from student_train.losses.loss_sum import LossSum
from student_train.targets import AttentionTargets


def attention_term(adapters: Adapters, targets: AttentionTargets, student_BHRC: Tensor, *, chunk_bytes: int) -> LossSum:
    """Squared error between adapted teacher and student; the backward pass decodes and adapts each chunk again.

    Args:
        student_BHRC: the student's attention at the targets' rows and columns.
        chunk_bytes: most that a chunk's targets take in float32, but at least one row's.
    """

    def part(coded_BrHC: CodedTensor, student_BHrC: Tensor, num_rows_B: list[int]) -> Tensor:
        adapted_BHrC = adapters.adapt_attention(coded_BrHC.decode().transpose(1, 2))
        return attention_loss(adapted_BHrC, student_BHrC, num_rows_B, targets.num_cols_B).total

    coded_BRHC = targets.stored_BRHC
    num, most_rows, heads, cols = coded_BRHC.shape
    at_once = max(1, chunk_bytes // max(1, 4 * num * heads * cols))
    totals = [
        checkpoint(
            part,
            coded_BRHC.rows(slice(start, start + at_once)),
            student_BHRC[:, :, start : start + at_once],
            [min(max(rows - start, 0), at_once) for rows in targets.num_rows_B],
            use_reentrant=False,
            preserve_rng_state=False,  # nothing draws random numbers
        )
        for start in range(0, most_rows, at_once)
    ]
    pairs = sum(rows * cols for rows, cols in zip(targets.num_rows_B, targets.num_cols_B, strict=True))
    return LossSum(stack(totals).sum(), pairs * student_BHRC.shape[1])
