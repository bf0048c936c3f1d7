"""Attention rows in chunks against autograd through the whole matrix, in float64."""

import pytest
import torch
from torch import Tensor

from vlm.attention_rows import attention_rows

NUM, HEADS, LENGTH, SIZE = 2, 3, 11, 4
ROWS = torch.tensor([[0, 5, 10, 10, 7], [3, 4, 0, 0, 0]])  # padded with 0, and a row twice
COLS = torch.tensor([[0, 3, 3, 9], [1, 2, 10, 0]])  # a column twice, and one after its row


def whole(query_BHRd: Tensor, key_BHLd: Tensor) -> Tensor:
    """The formula as it is written, differentiated by autograd."""
    scores = query_BHRd @ key_BHLd.transpose(2, 3) * 0.5
    future = torch.arange(LENGTH)[None, None] > ROWS[..., None]
    probs = torch.softmax(torch.where(future[:, None], -torch.inf, scores), dim=-1)
    return torch.stack([probs[sample][:, :, COLS[sample]] for sample in range(NUM)])


@pytest.fixture
def inputs() -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    shapes = ((NUM, HEADS, ROWS.shape[1], SIZE), (NUM, HEADS, LENGTH, SIZE))
    query, key = (torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes)
    return query, key


@pytest.mark.parametrize("rows_at_once", [1, 2, 5, None])
def test_values_and_gradients_are_those_of_the_formula(inputs: tuple[Tensor, Tensor], rows_at_once: int | None) -> None:
    chunk_bytes = None if rows_at_once is None else rows_at_once * 4 * NUM * HEADS * LENGTH
    found, expected = attention_rows(*inputs, ROWS, COLS, scaling=0.5, chunk_bytes=chunk_bytes), whole(*inputs)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)
    slopes = torch.randn_like(expected)
    for own, reference in zip(
        torch.autograd.grad(found, inputs, slopes), torch.autograd.grad(expected, inputs, slopes), strict=True
    ):
        torch.testing.assert_close(own, reference, rtol=1e-10, atol=1e-13)


def test_gradcheck(inputs: tuple[Tensor, Tensor]) -> None:
    assert torch.autograd.gradcheck(
        lambda query, key: attention_rows(query, key, ROWS, COLS, scaling=0.5, chunk_bytes=600), inputs
    )


def test_half_precision_is_near_the_formula(inputs: tuple[Tensor, Tensor]) -> None:
    """Scores are products in bfloat16, everything after them is float32, and keys' gradients are summed in float32."""
    half = tuple(value.detach().bfloat16().requires_grad_() for value in inputs)
    exact = tuple(value.detach().double().requires_grad_() for value in half)
    found, expected = attention_rows(*half, ROWS, COLS, scaling=0.5, chunk_bytes=300), whole(*exact)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), expected, rtol=2e-2, atol=2e-3)
    slopes = torch.randn_like(found)
    gradients = torch.autograd.grad(found, half, slopes), torch.autograd.grad(expected, exact, slopes.double())
    for own, reference in zip(*gradients, strict=True):
        assert own.dtype == torch.bfloat16
        torch.testing.assert_close(own.double(), reference, rtol=5e-2, atol=2e-2)


def test_no_rows(inputs: tuple[Tensor, Tensor]) -> None:
    query, key = inputs[0][:, :, :0], inputs[1]
    found = attention_rows(query, key, ROWS[:, :0], COLS, scaling=0.5, chunk_bytes=1)
    assert found.shape == (NUM, HEADS, 0, 4)
    (gradient,) = torch.autograd.grad(found.sum(), key)
    assert not gradient.any()
