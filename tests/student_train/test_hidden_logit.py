"""From hidden states and lm_head, in chunks, the same loss as from full logits."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from student_train.losses import hidden_logit
from student_train.losses.divergences import Divergence, forward_kl, reverse_kl
from student_train.losses.hidden_logit import hidden_logit_loss
from student_train.losses.logit import logit_loss


@pytest.mark.parametrize("divergence", [reverse_kl, forward_kl])
@pytest.mark.parametrize("temperature", [1.0, 2.5])
@pytest.mark.parametrize("num", [0, 1, 7, 16])
def test_equals_full_logits(
    divergence: Divergence, temperature: float, num: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hidden_logit, "POSITIONS_AT_ONCE", 5)
    torch.manual_seed(num)
    states_ND, lm_head_VD = torch.randn(num, 12), torch.randn(30, 12)
    student_NV = torch.randn(num, 30, requires_grad=True)
    settings: dict[str, Any] = {"divergence": divergence, "temperature": temperature}
    full = logit_loss(student_NV, states_ND @ lm_head_VD.T, **settings)
    hidden = hidden_logit_loss(student_NV, states_ND, lm_head_VD, **settings)
    assert hidden.count == full.count == num
    torch.testing.assert_close(hidden.total, full.total, rtol=1e-6, atol=1e-6)
    gradients = [torch.autograd.grad(loss.total, student_NV)[0] for loss in (hidden, full)]
    torch.testing.assert_close(*gradients, rtol=1e-5, atol=1e-6)


def test_the_product_has_the_teachers_dtype() -> None:
    """A bfloat16 teacher gives bfloat16 logits when it is alive; so must its states."""
    torch.manual_seed(0)
    states_ND, lm_head_VD = torch.randn(4, 12).bfloat16(), torch.randn(30, 12).bfloat16()
    student_NV = torch.randn(4, 30)
    live = logit_loss(student_NV, states_ND @ lm_head_VD.T).total
    assert torch.equal(hidden_logit_loss(student_NV, states_ND, lm_head_VD).total, live)
    assert torch.equal(hidden_logit_loss(student_NV, states_ND.float(), lm_head_VD).total, live)


def test_no_teacher_logits_are_kept_for_the_backward_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hidden_logit, "POSITIONS_AT_ONCE", 8)
    student_NV = torch.randn(64, 500, requires_grad=True)
    states_ND, lm_head_VD = torch.randn(64, 4), torch.randn(500, 4)

    def kept_values(loss: Callable[[], Tensor]) -> int:
        """Numbers that the forward pass keeps beside its inputs."""
        kept: list[Tensor] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda t: t):
            loss()
        own = {tensor.untyped_storage().data_ptr() for tensor in (student_NV, states_ND, lm_head_VD)}
        return sum(tensor.numel() for tensor in kept if tensor.untyped_storage().data_ptr() not in own)

    assert kept_values(lambda: hidden_logit_loss(student_NV, states_ND, lm_head_VD).total) < 500
    assert kept_values(lambda: logit_loss(student_NV, states_ND @ lm_head_VD.T).total) > 2 * 64 * 500
