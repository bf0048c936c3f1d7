"""The loss that a kind of stored logits takes."""

import torch

from alignkd.student_train.data.decode import EncodedTensor
from alignkd.student_train.data.targets import HiddenTargets
from alignkd.student_train.losses.logit import logit_loss
from alignkd.student_train.objective.logit_terms import logit_term
from alignkd.student_train.objective.settings import LossConfig
from alignkd.vlm.families.family import Head


def test_hidden_states_become_logits_in_the_dtype_of_the_teachers_head() -> None:
    """A bfloat16 teacher gives bfloat16 logits when it is alive; so must its stored states, whatever their dtype."""
    torch.manual_seed(0)
    states_ND, lm_head_VD = torch.randn(4, 12).bfloat16(), torch.randn(30, 12).bfloat16()
    student_NV, chunk = torch.randn(4, 30), slice(1, 3)
    live = logit_loss(student_NV[chunk], (states_ND @ lm_head_VD.T)[chunk]).total
    for stored_ND in (states_ND, states_ND.float()):
        targets = HiddenTargets(states=EncodedTensor.plain(stored_ND))
        term = logit_term(LossConfig().head_inputs(torch.zeros(4).long(), targets, Head(weight_VD=lm_head_VD)))
        assert torch.equal(term(student_NV[chunk], chunk), live)
