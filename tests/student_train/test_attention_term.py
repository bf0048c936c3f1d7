"""The attention term in chunks of rows against the loss on whole tensors."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from storage.codecs import get_codec
from student_train.adapters import Adapters
from student_train.attention_term import attention_term
from student_train.decode import CodedTensor
from student_train.losses.attention import attention_loss
from student_train.targets import AttentionTargets

ROWS, COLS = [7, 0, 3], [4, 0, 5]


@pytest.fixture(params=["float32", "bfloat16", "sqrt_u8"])
def targets(request: pytest.FixtureRequest) -> AttentionTargets:
    """Three samples, one of them text-only; what is padded is 0."""
    values = np.random.default_rng(0).random((3, 7, 6, 5), np.float32)
    for sample, (rows, cols) in enumerate(zip(ROWS, COLS, strict=True)):
        values[sample, rows:], values[sample, :, :, cols:] = 0, 0
    parts = {name: torch.from_numpy(part) for name, part in get_codec(request.param).encode(values).items()}
    return AttentionTargets(
        rows_BR=torch.zeros(3, 7, dtype=torch.int64),
        cols_BC=torch.zeros(3, 5, dtype=torch.int64),
        num_rows_B=ROWS,
        num_cols_B=COLS,
        coded_BRHC=CodedTensor(codec=request.param, parts=parts),
    )


@pytest.mark.parametrize("rows_at_once", [1, 2, 7, 100])
def test_chunks_change_neither_loss_nor_gradients(targets: AttentionTargets, rows_at_once: int) -> None:
    adapters = Adapters(heads=(6, 4), hidden_sizes=(1, 1))
    adapters.initialise("pytorch", seed=0)
    student = torch.rand(3, 4, 7, 5, requires_grad=True)
    leaves: list[Tensor] = [student, *adapters.attn_adapter.parameters()]
    whole = attention_loss(adapters.adapt_attention(targets.teacher_BHRC), student, ROWS, COLS)
    found = attention_term(adapters, targets, student, chunk_bytes=rows_at_once * 4 * 3 * 6 * 5)
    assert found.count == whole.count == 4 * (7 * 4 + 3 * 5)
    torch.testing.assert_close(found.total, whole.total, rtol=1e-6, atol=0.0)
    gradients = (torch.autograd.grad(loss.total, leaves) for loss in (found, whole))
    for own, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(own, expected, rtol=1e-5, atol=1e-6)


def test_padding_may_hold_anything(targets: AttentionTargets) -> None:
    adapters = Adapters(heads=(6, 4), hidden_sizes=(1, 1))
    adapters.initialise("pytorch", seed=0)
    student = torch.rand(3, 4, 7, 5)
    spoiled = student.clone()
    for sample, (rows, cols) in enumerate(zip(ROWS, COLS, strict=True)):
        spoiled[sample, :, rows:], spoiled[sample, :, :, cols:] = torch.inf, torch.nan
    sound, found = (attention_term(adapters, targets, x, chunk_bytes=1) for x in (student, spoiled))
    assert torch.equal(sound.total, found.total)
    assert attention_term(adapters, replace(targets, num_rows_B=[0, 0, 0]), student, chunk_bytes=1).count == 0
