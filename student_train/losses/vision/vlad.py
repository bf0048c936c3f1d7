"""Vision-language affinity distillation of EM-KD (arXiv 2511.21106): cosines between vision tokens and text tokens.

With A [P, Q] the cosines of the teacher's last hidden states at P vision tokens with those at Q text queries, and B
those of the student:

    sum over p, q of h(B_pq - A_pq),   h(d) = d^2 / 2 for |d| <= 1, |d| - 1/2 beyond

A cosine needs no adapter: the two models may have different hidden sizes.
"""

from torch import Tensor
from torch.nn import functional

from alignkd.student_train.losses.loss_sum import LossSum, to_accum_dtype


def vlad_loss(student_SPQ: Tensor, teacher_SPQ: Tensor, mask_SPQ: Tensor) -> LossSum:
    """Sum over the real pairs of a vision token and a text query of S samples; its parts are the samples.

    Args:
        student_SPQ, teacher_SPQ: cosines; row p of one is paired with row p of the other. Padded entries may have any
            value.
        mask_SPQ: bool, True at real pairs.

    The count of the result is 0: how many pairs are real is known on the host, to the caller.
    """
    assert student_SPQ.shape == teacher_SPQ.shape, (student_SPQ.shape, teacher_SPQ.shape)
    teacher_SPQ = teacher_SPQ.to(to_accum_dtype(student_SPQ).dtype)
    # masked before the difference: 0 * inf is not 0
    errors = to_accum_dtype(student_SPQ).masked_fill(~mask_SPQ, 0.0), teacher_SPQ.masked_fill(~mask_SPQ, 0.0)
    parts_S = functional.smooth_l1_loss(*errors, reduction="none").sum(dim=(1, 2))
    return LossSum.of(parts_S, 0)
