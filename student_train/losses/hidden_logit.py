"""The logit loss from the teacher's last hidden states: exact for every divergence and temperature.

The teacher's logits are made a few hundred positions at a time and made again for the backward pass, so that [N, V] of
the teacher is never held.
"""

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from student_train.losses.divergences import Divergence, reverse_kl
from student_train.losses.logit import logit_loss
from student_train.losses.loss_sum import LossSum

POSITIONS_AT_ONCE = 256


def teacher_logits(states_ND: Tensor, lm_head_VD: Tensor) -> Tensor:
    """The teacher's logits [N, V], in the dtype of its lm_head as those of the live teacher."""
    return states_ND.to(lm_head_VD.dtype) @ lm_head_VD.T


def hidden_logit_loss(
    student_logits_NV: Tensor,
    states_ND: Tensor,
    lm_head_VD: Tensor,
    *,
    divergence: Divergence = reverse_kl,
    temperature: float = 1.0,
) -> LossSum:
    """Sum over positions of the divergence in nats.

    Args:
        student_logits_NV: the student's logits at N supervised positions.
        states_ND: the teacher's states after its final norm; D is the teacher's.
        lm_head_VD: the teacher's, in its own dtype, which is that of the product as in the live teacher.
        divergence, temperature: as for `logit_loss`.
    """

    def chunk_total(student_nV: Tensor, states_nD: Tensor) -> Tensor:
        teacher_nV = teacher_logits(states_nD, lm_head_VD)
        return logit_loss(student_nV, teacher_nV, divergence=divergence, temperature=temperature).total

    totals = [
        checkpoint(chunk_total, student_nV, states_nD, use_reentrant=False, preserve_rng_state=False)
        for student_nV, states_nD in zip(
            student_logits_NV.split(POSITIONS_AT_ONCE), states_ND.split(POSITIONS_AT_ONCE), strict=True
        )
    ]
    return LossSum(torch.stack(totals).sum(), len(student_logits_NV))
