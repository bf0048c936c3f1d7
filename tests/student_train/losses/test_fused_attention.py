"""A loss fused with attention rows against autograd through the whole matrix, in float64."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from alignkd.student_train.losses.attention.fused import fused_attention_loss
from alignkd.vlm.attention.attention_rows import RowInputs

NUM, HEADS, LENGTH, SIZE = 2, 3, 11, 4
ROWS = torch.tensor([[0, 5, 10, 10, 7], [3, 4, 0, 0, 0]])  # padded with 0, and a row twice
COLS = torch.tensor([[0, 3, 3, 9], [1, 2, 10, 0]])  # a column twice, and one after its row
# A sliding window of four keys; and keys 2 to 5, which each row sees wherever it is.
POSITIONS = torch.arange(LENGTH)
SLIDING = (ROWS[..., None] >= POSITIONS) & (ROWS[..., None] - 4 < POSITIONS)
BLOCK = (ROWS[..., None] >= POSITIONS) | ((POSITIONS >= 2) & (POSITIONS <= 5))
# Soft cap and mask: plain causal attention, and what other models add to it.
FORMS = [(None, None), (0.7, None), (None, SLIDING), (0.7, BLOCK)]
over_forms = pytest.mark.parametrize(("softcap", "visible"), FORMS, ids=["causal", "softcap", "sliding", "both"])


def whole(query_BHRd: Tensor, key_BHLd: Tensor, softcap: float | None = None, visible: Tensor | None = None) -> Tensor:
    """The attention's formula as it is written, differentiated by autograd."""
    scores = query_BHRd @ key_BHLd.transpose(2, 3) * 0.5
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    visible = ROWS[..., None] >= POSITIONS if visible is None else visible
    probs = torch.softmax(torch.where(visible[:, None], scores, -torch.inf), dim=-1)
    return torch.stack([probs[sample][:, :, COLS[sample]] for sample in range(NUM)])


def loss_of(chosen_BHrC: Tensor, rows: slice, weight_H: Tensor, wanted_BHRC: Tensor) -> Tensor:
    """Something with a parameter, and another for each row; by sample."""
    error_BHrC = chosen_BHrC * weight_H[:, None, None] - wanted_BHRC[:, :, rows].to(chosen_BHrC.dtype)
    return error_BHrC.square().sum(dim=(1, 2, 3))


@pytest.fixture
def inputs() -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    shapes = ((NUM, HEADS, ROWS.shape[1], SIZE), (NUM, HEADS, LENGTH, SIZE), (HEADS,))
    query, key, weight = (torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes)
    return query, key, weight


@pytest.fixture
def wanted() -> Tensor:
    return torch.rand(NUM, HEADS, *COLS.shape[-1:], dtype=torch.float64)[:, :, None].repeat(1, 1, ROWS.shape[1], 1)


def fused(
    query: Tensor,
    key: Tensor,
    weight: Tensor,
    wanted: Tensor,
    *,
    at_once: int,
    softcap: float | None = None,
    visible: Tensor | None = None,
) -> Tensor:
    rows = ROWS[:, : query.shape[2]]
    total, parts_B = fused_attention_loss(
        RowInputs(query_BHRd=query, key_BHLd=key, rows_BR=rows, scaling=0.5, softcap=softcap, visible_BRL=visible),
        COLS,
        lambda chosen, rows, weight_H: loss_of(chosen, rows, weight_H, wanted),
        [weight],
        rows_at_once=at_once,
    )
    assert not parts_B.requires_grad
    torch.testing.assert_close(parts_B.sum(), total.detach(), rtol=1e-6, atol=0)
    return total


@over_forms
@pytest.mark.parametrize("at_once", [1, 2, 5, 100])
def test_value_and_gradients_are_those_of_the_formula(
    inputs: tuple[Tensor, Tensor, Tensor], wanted: Tensor, at_once: int, softcap: float | None, visible: Tensor | None
) -> None:
    query, key, weight = inputs
    found, expected = (
        fused(*inputs, wanted, at_once=at_once, softcap=softcap, visible=visible),
        loss_of(whole(query, key, softcap, visible), slice(None), weight, wanted).sum(),
    )
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)
    for own, reference in zip(
        torch.autograd.grad(found * 3e4, inputs), torch.autograd.grad(expected * 3e4, inputs), strict=True
    ):
        torch.testing.assert_close(own, reference, rtol=1e-10, atol=1e-9)


@over_forms
def test_gradcheck(
    inputs: tuple[Tensor, Tensor, Tensor], wanted: Tensor, softcap: float | None, visible: Tensor | None
) -> None:
    assert torch.autograd.gradcheck(
        lambda *leaves: fused(*leaves, wanted, at_once=2, softcap=softcap, visible=visible), inputs
    )


@pytest.mark.parametrize(("dtype", "bound"), [(torch.bfloat16, 2e-2), (torch.float16, 2e-3)])
@pytest.mark.parametrize("size", [1.0, 1e-4])
def test_half_precision_is_near_the_formula(
    inputs: tuple[Tensor, Tensor, Tensor], wanted: Tensor, dtype: torch.dtype, bound: float, size: float
) -> None:
    """Scores are products in half precision, everything after them is float32; also where slopes are tiny."""
    half = [value.detach().to(dtype).requires_grad_() for value in inputs[:2]]
    weight = (inputs[2].detach() * size).float().requires_grad_()
    exact = [value.detach().double().requires_grad_() for value in (*half, weight)]
    found = fused(*half, weight, wanted, at_once=2)
    expected = loss_of(whole(*exact[:2]), slice(None), exact[2], wanted).sum()
    assert found.dtype == torch.float32
    assert found.item() == pytest.approx(expected.item(), rel=bound)
    gradients = torch.autograd.grad(found, [*half, weight]), torch.autograd.grad(expected, exact)
    for own, reference, like in zip(*gradients, [*half, weight], strict=True):
        assert own.dtype == like.dtype
        assert float((own.double() - reference).norm()) <= 5 * bound * float(reference.norm())


def test_no_rows_give_zeros_to_every_input(inputs: tuple[Tensor, Tensor, Tensor], wanted: Tensor) -> None:
    """ZeRO-2 wants a gradient of every parameter from every batch."""
    query, key, weight = inputs
    found = fused(query[:, :, :0], key, weight, wanted, at_once=1)
    assert found.item() == 0
    assert not any(gradient.any() for gradient in torch.autograd.grad(found, (key, weight)))


def test_evaluation_gives_the_same_and_keeps_nothing(inputs: tuple[Tensor, Tensor, Tensor], wanted: Tensor) -> None:
    with torch.no_grad():
        silent = fused(*inputs, wanted, at_once=2)
    assert not silent.requires_grad
    torch.testing.assert_close(silent, fused(*inputs, wanted, at_once=2).detach(), rtol=1e-12, atol=0)


class CopiesOfShape(TorchDispatchMode):
    """Counts the tensors of a shape that operations make, apart from sums and products: copies."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.shape, self.found = shape, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        copies = func.overloadpacket in (torch.ops.aten.clone, torch.ops.aten._to_copy)
        self.found += copies and result.numel() == math.prod(self.shape)
        return result


@pytest.mark.parametrize(("dtype", "copies"), [(torch.float64, 1), (torch.float16, 2)])
def test_keys_are_copied_once_and_not_for_each_chunk(
    inputs: tuple[Tensor, Tensor, Tensor], wanted: Tensor, dtype: torch.dtype, copies: int
) -> None:
    """In the order that rotated keys have in memory; float16 is converted once for the gradient's products."""
    query, key, weight = (value.detach().to(dtype) for value in inputs)
    projected = key.transpose(1, 2).contiguous().transpose(1, 2)
    parameter = weight.double() if dtype == torch.float64 else weight.float()
    found = []
    for keys in (key, projected):
        leaves = query.clone().requires_grad_(), keys.requires_grad_(), parameter.clone().requires_grad_()
        with CopiesOfShape(key.shape) as count:
            total = fused(*leaves, wanted, at_once=1)
        found.append([total, *torch.autograd.grad(total, leaves)])
        assert count.found == copies - (keys is key)
    for own, other in zip(*found, strict=True):
        assert torch.equal(own, other)
