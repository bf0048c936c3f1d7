"""The terms on the student's logits at N supervised positions, each as a sum over one chunk of positions."""

from alignkd.student_train.data.targets import FullTargets, HiddenTargets, SampledTargets
from alignkd.student_train.losses.fused_head import HeadTerm
from alignkd.student_train.losses.logit import logit_loss, teacher_logits
from alignkd.student_train.losses.sampled_logit import sampled_logit_loss
from alignkd.student_train.losses.supervised import supervised_loss
from alignkd.student_train.objective.term import HeadInputs


def label_term(inputs: HeadInputs) -> HeadTerm:
    """Cross-entropy with the labels."""
    return lambda student_nV, chunk: supervised_loss(student_nV, inputs.labels_N[chunk]).total


def logit_term(inputs: HeadInputs) -> HeadTerm:
    """Eq. 6: the divergence from the teacher's distribution, by the kind of logits that the store keeps."""
    targets, divergence, temperature = inputs.targets, inputs.divergence, inputs.temperature
    assert targets is not None
    if isinstance(targets, SampledTargets):  # forward KL at temperature 1: `LossConfig.problems_with`
        return lambda student_nV, chunk: sampled_logit_loss(student_nV, targets.distribution(chunk)).total
    if isinstance(targets, HiddenTargets):
        states_ND, head_VD = targets.states.decode(), inputs.teacher_lm_head_VD
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
