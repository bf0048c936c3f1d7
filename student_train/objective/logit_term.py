"""Which loss a kind of stored logits takes, a chunk of positions at a time."""

from torch import Tensor

from alignkd.student_train.config import LossConfig
from alignkd.student_train.data.targets import FullTargets, HiddenTargets, LogitTargets, SampledTargets
from alignkd.student_train.losses.fused_head import HeadTerm
from alignkd.student_train.losses.logit import logit_loss, teacher_logits
from alignkd.student_train.losses.sampled_logit import sampled_logit_loss


def logit_term(targets: LogitTargets, lm_head_VD: Tensor | None, losses: LossConfig) -> HeadTerm:
    """Eq. 6 at N supervised positions; `lm_head_VD` is the teacher's, needed by `hidden` alone."""
    divergence, temperature = losses.divergence, losses.temperature
    if isinstance(targets, SampledTargets):  # forward KL at temperature 1: `LossConfig.problems_with`
        return lambda student_nV, chunk: sampled_logit_loss(student_nV, targets.distribution(chunk)).total
    if isinstance(targets, HiddenTargets):
        states_ND, head_VD = targets.states.decode(), lm_head_VD
        assert head_VD is not None
        return lambda student_nV, chunk: (
            logit_loss(
                student_nV, teacher_logits(states_ND[chunk], head_VD), divergence=divergence, temperature=temperature
            ).total
        )
    teacher = targets.logits.decode() if isinstance(targets, FullTargets) else targets.distribution()
    return lambda student_nV, chunk: (
        logit_loss(student_nV, teacher[chunk], divergence=divergence, temperature=temperature).total
    )
