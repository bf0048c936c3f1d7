"""The loss that a kind of stored logits takes."""

import torch

from alignkd.student_train.config import LossConfig
from alignkd.student_train.data.decode import CodedTensor
from alignkd.student_train.data.targets import HiddenTargets
from alignkd.student_train.losses.logit import logit_loss
from alignkd.student_train.objective.logit_term import logit_term


def test_hidden_states_become_logits_in_the_dtype_of_the_teachers_head() -> None:
    """A bfloat16 teacher gives bfloat16 logits when it is alive; so must its stored states, whatever their dtype."""
    torch.manual_seed(0)
    states_ND, lm_head_VD = torch.randn(4, 12).bfloat16(), torch.randn(30, 12).bfloat16()
    student_NV, chunk = torch.randn(4, 30), slice(1, 3)
    live = logit_loss(student_NV[chunk], (states_ND @ lm_head_VD.T)[chunk]).total
    for stored_ND in (states_ND, states_ND.float()):
        term = logit_term(HiddenTargets(states=CodedTensor.plain(stored_ND)), lm_head_VD, LossConfig())
        assert torch.equal(term(student_NV[chunk], chunk), live)
