"""Which loss a kind of stored logits takes."""

from torch import Tensor

from student_train.config import LossConfig
from student_train.losses.hidden_logit import hidden_logit_loss
from student_train.losses.logit import logit_loss
from student_train.losses.loss_sum import LossSum
from student_train.losses.sampled_logit import sampled_logit_loss
from student_train.targets import FullTargets, HiddenTargets, LogitTargets, SampledTargets


def logit_term(
    student_logits_NV: Tensor, targets: LogitTargets, lm_head_VD: Tensor | None, losses: LossConfig
) -> LossSum:
    """Eq. 6 at N supervised positions; `lm_head_VD` is the teacher's, needed by `hidden` alone."""
    if isinstance(targets, SampledTargets):  # forward at temperature 1: `LossConfig.problems_with`
        return sampled_logit_loss(student_logits_NV, targets.distribution())
    direction, temperature = losses.logit_direction, losses.temperature
    if isinstance(targets, HiddenTargets):
        assert lm_head_VD is not None
        return hidden_logit_loss(
            student_logits_NV, targets.states.decode(), lm_head_VD, direction=direction, temperature=temperature
        )
    teacher = targets.logits.decode() if isinstance(targets, FullTargets) else targets.distribution()
    return logit_loss(student_logits_NV, teacher, direction=direction, temperature=temperature)
