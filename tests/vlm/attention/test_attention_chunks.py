"""Attention rows in chunks against the whole matrix; gradients: tests/student_train/losses/test_fused_attention.py."""

import pytest
import torch
from torch import Tensor

from alignkd.vlm.attention.attention_rows import RowInputs, attention_rows

NUM, HEADS, LENGTH, SIZE = 2, 3, 11, 4
ROWS = torch.tensor([[0, 5, 10, 10, 7], [3, 4, 0, 0, 0]])  # padded with 0, and a row twice
COLS = torch.tensor([[0, 3, 3, 9], [1, 2, 10, 0]])  # a column twice, and one after its row


def whole(query_BHRd: Tensor, key_BHLd: Tensor) -> Tensor:
    """The formula as it is written."""
    scores = query_BHRd @ key_BHLd.transpose(2, 3) * 0.5
    future = torch.arange(LENGTH)[None, None] > ROWS[..., None]
    probs = torch.softmax(torch.where(future[:, None], -torch.inf, scores), dim=-1)
    return torch.stack([probs[sample][:, :, COLS[sample]] for sample in range(NUM)])


def computed(query: Tensor, key: Tensor, rows: Tensor, cols: Tensor, chunk_bytes: int | None = None) -> Tensor:
    """The code under test."""
    inputs = RowInputs(query_BHRd=query, key_BHLd=key, rows_BR=rows, scaling=0.5)
    return attention_rows(inputs, cols, chunk_bytes=chunk_bytes)


@pytest.fixture
def inputs() -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    shapes = ((NUM, HEADS, ROWS.shape[1], SIZE), (NUM, HEADS, LENGTH, SIZE))
    query, key = (torch.randn(shape, dtype=torch.float64) for shape in shapes)
    return query, key


@pytest.mark.parametrize("rows_at_once", [1, 2, 5, None])
def test_values_are_those_of_the_formula(inputs: tuple[Tensor, Tensor], rows_at_once: int | None) -> None:
    chunk_bytes = None if rows_at_once is None else rows_at_once * 4 * NUM * HEADS * LENGTH
    found, expected = computed(*inputs, ROWS, COLS, chunk_bytes), whole(*inputs)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)


def test_keys_that_no_row_sees_are_left_out(inputs: tuple[Tensor, Tensor]) -> None:
    """Their values do not matter, also where they are no numbers."""
    query, key = inputs
    rows, cols = ROWS.clamp(max=6), COLS.clamp(max=6)
    expected = computed(query, key, rows, cols)
    key[:, :, 7:] = torch.nan
    torch.testing.assert_close(computed(query, key, rows, cols), expected, rtol=0, atol=0)


def test_half_precision_is_near_the_formula(inputs: tuple[Tensor, Tensor]) -> None:
    """Scores are products in bfloat16, everything after them is float32."""
    half = tuple(value.bfloat16() for value in inputs)
    found, expected = (
        computed(*half, ROWS, COLS, 300),
        whole(*(x.double() for x in half)),
    )
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), expected, rtol=2e-2, atol=2e-3)


def test_no_rows(inputs: tuple[Tensor, Tensor]) -> None:
    query, key = inputs[0][:, :, :0], inputs[1]
    assert computed(query, key, ROWS[:, :0], COLS, 1).shape == (NUM, HEADS, 0, 4)
