"""The logit loss from tokens drawn from the teacher: an unbiased estimate of the FORWARD divergence only.

Random-sampling knowledge distillation (Sparse Logit Sampling, arXiv 2503.16870): the mean over draws of the student's
log-probability has the teacher's cross-entropy as its expectation. A single estimate may be negative; its mean is a
divergence. The reverse divergence is an expectation over the STUDENT, which draws of the teacher cannot estimate.
"""

from dataclasses import dataclass
from typing import Self

from torch import Tensor

from alignkd.student_train.losses.logits.outcomes import Outcomes, outcomes
from alignkd.student_train.losses.loss_sum import LossSum, to_accum_dtype


@dataclass(frozen=True, kw_only=True)
class SampledDistribution:
    """Draws at N positions, padded to the largest number of distinct ids of a position.

    Attributes:
        ids_NK: int64 token ids, 0 where padded.
        weights_NK: float32, share of the draws that gave each id; 0 where padded.
        entropy_N: float32, the teacher's exact entropy in nats.
    """

    ids_NK: Tensor
    weights_NK: Tensor
    entropy_N: Tensor

    def __getitem__(self, positions: slice) -> Self:
        """The draws of some of the positions, without a copy."""
        return type(self)(**{name: values[positions] for name, values in vars(self).items()})


def sampled_logit_loss(student_logits_NV: Tensor, teacher: SampledDistribution) -> LossSum:
    """Sum over positions of the estimate of KL(teacher || student) in nats, at temperature 1."""
    return loss_of_draws(outcomes(to_accum_dtype(student_logits_NV), ids_NK=teacher.ids_NK), teacher)


def loss_of_draws(student: Outcomes, teacher: SampledDistribution) -> LossSum:
    """`sampled_logit_loss` from the student's log-probabilities of the drawn tokens."""
    assert student.logprobs_NK is not None
    cross_entropy_N = -(teacher.weights_NK * student.logprobs_NK).sum(dim=-1)
    return LossSum.of(cross_entropy_N - teacher.entropy_N)
