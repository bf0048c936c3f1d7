"""Losses of MCD against a teacher that saw the sample twice: as it is, and with its evidence replaced.

With F the sample as it is, R the pass whose evidence is replaced, K the pass in which only the evidence is kept, and
P the distribution over one list of tokens and a bucket for all others:

    effect = 1/4 |(P_T^F - P_T^R) - (P_S^F - P_S^R)|_1        keep = 1/2 |P_T^F - P_S^K|_1

Both lie in [0, 1] at each position. The list is the teacher's, the same for both passes of both models.

Shapes: N supervised positions, K entries, V vocabulary.
"""

import torch
from torch import Tensor

from alignkd.student_train.losses.logits.outcomes import outcomes
from alignkd.student_train.losses.logits.truncated_distribution import TruncatedDistribution
from alignkd.student_train.losses.loss_sum import LossSum, to_accum_dtype


def effect_loss(
    full_NV: Tensor, removed_NV: Tensor, teacher_full: TruncatedDistribution, teacher_removed: TruncatedDistribution
) -> LossSum:
    """Sum over positions of a quarter of the L1 distance between the effects of the evidence.

    Args:
        full_NV, removed_NV: the student's logits of the passes F and R.
        teacher_full, teacher_removed: the teacher's; both have the same entries.
    """
    student_NO = student_masses(full_NV, teacher_full) - student_masses(removed_NV, teacher_full)
    teacher_NO = teacher_masses(teacher_full) - teacher_masses(teacher_removed)
    return LossSum.of((teacher_NO.to(student_NO.dtype) - student_NO).abs().sum(-1) / 4)


def keep_loss(kept_NV: Tensor, teacher_full: TruncatedDistribution) -> LossSum:
    """Sum over positions of half of the L1 distance between the teacher's pass F and the student's pass K.

    Args:
        kept_NV: the student's logits of the pass K.
    """
    student_NO = student_masses(kept_NV, teacher_full)
    return LossSum.of((teacher_masses(teacher_full).to(student_NO.dtype) - student_NO).abs().sum(-1) / 2)


def student_masses(logits_NV: Tensor, teacher: TruncatedDistribution) -> Tensor:
    """Probabilities of the teacher's entries and of all other tokens together, [N, K + 1]; 0 where padded."""
    seen = outcomes(to_accum_dtype(logits_NV), ids_NK=teacher.ids_NK, kept_NK=teacher.kept_NK)
    assert seen.logprobs_NK is not None
    return _masses(seen.logprobs_NK, teacher.kept_NK, seen.tail_logmass_N)


def teacher_masses(teacher: TruncatedDistribution) -> Tensor:
    """The same of the teacher."""
    assert teacher.tail_logmass_N is not None
    return _masses(teacher.logprobs_NK, teacher.kept_NK, teacher.tail_logmass_N)


def _masses(logprobs_NK: Tensor, kept_NK: Tensor, tail_logmass_N: Tensor) -> Tensor:
    # padded slots are masked before the exponential, so that their gradient is 0
    entries_NK = logprobs_NK.masked_fill(~kept_NK, -torch.inf).exp()
    return torch.cat([entries_NK, tail_logmass_N.exp()[:, None]], dim=-1)
