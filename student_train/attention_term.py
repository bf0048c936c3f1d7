"""Eq. 1 on stored targets, some rows at a time: the teacher's attention is never decoded and adapted as a whole."""

from torch import Tensor

from student_train.adapters import Adapters
from student_train.losses.attention import adapted_attention_loss
from student_train.losses.loss_sum import LossSum
from student_train.targets import AttentionTargets


def attention_term(adapters: Adapters, targets: AttentionTargets, student_BHRC: Tensor, *, chunk_bytes: int) -> LossSum:
    """Squared error between adapted teacher and student; each row is decoded and adapted once.

    Args:
        student_BHRC: the student's attention at the targets' rows and columns.
        chunk_bytes: most that a chunk's targets take in float32, but at least one row's.
    """
    coded_BRHC = targets.stored_BRHC
    num, _, heads, cols = coded_BRHC.shape
    return adapted_attention_loss(
        student_BHRC,
        *adapters.attention_weights(),
        lambda rows: coded_BRHC.rows(rows).decode(),
        targets.num_rows_B,
        targets.num_cols_B,
        rows_at_once=max(1, chunk_bytes // max(1, 4 * num * heads * cols)),
    )
