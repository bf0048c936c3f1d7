"""Vision semantic distillation of EM-KD (arXiv 2511.21106): distributions over the vocabulary at vision tokens.

With p_i the teacher's softmax of the logits at a vision token and q_i the student's at the token that is paired with it
(`matching.py`):

    sum over i of KL(q_i || p_i)
"""

from torch import Tensor
from torch.nn import functional

from alignkd.student_train.losses.logits.divergences.f_divergences import reverse_kl
from alignkd.student_train.losses.loss_sum import LossSum, to_accum_dtype


def vsd_loss(student_PV: Tensor, teacher_PV: Tensor) -> LossSum:
    """Sum over P pairs of vision tokens of the reverse KL divergence in nats; its parts are the pairs.

    Args:
        student_PV, teacher_PV: logits over the whole vocabulary; row i of one is paired with row i of the other. A
            truncated teacher does not serve: the distribution at vision tokens is broad.
    """
    assert student_PV.shape == teacher_PV.shape, (student_PV.shape, teacher_PV.shape)
    logq_PV = functional.log_softmax(to_accum_dtype(student_PV), dim=-1)
    logp_PV = functional.log_softmax(to_accum_dtype(teacher_PV), dim=-1)
    return LossSum.of(reverse_kl(logq_PV, logp_PV).sum(-1))
