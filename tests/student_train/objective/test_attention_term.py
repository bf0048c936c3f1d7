"""The attention term in chunks of rows against the loss on whole tensors."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from alignkd.storage.codecs import get_codec
from alignkd.student_train.data.decode import EncodedTensor
from alignkd.student_train.data.targets import AttentionTargets
from alignkd.student_train.losses.attention.squared_error import attention_loss
from alignkd.student_train.objective.adapters import Adapters
from alignkd.student_train.objective.attention.match import HeadWeights
from alignkd.student_train.objective.attention.rows_of_pair import RowsOfPair
from alignkd.student_train.objective.attention.term import chunked_attention_loss
from alignkd.student_train.objective.settings import LossConfig
from alignkd.vlm.attention.attention_rows import RowInputs

ROWS, COLS = [7, 0, 3], [4, 0, 5]


@pytest.fixture(params=["float32", "bfloat16", "sqrt_u8"])
def targets(request: pytest.FixtureRequest) -> AttentionTargets:
    """Three samples, one of them text-only; what is padded is 0."""
    values = np.random.default_rng(0).random((3, 7, 6, 5), np.float32)
    for sample, (rows, cols) in enumerate(zip(ROWS, COLS, strict=True)):
        values[sample, rows:], values[sample, :, :, cols:] = 0, 0
    parts = {name: torch.from_numpy(part) for name, part in get_codec(request.param).encode(values).items()}
    return AttentionTargets(
        rows_BR=torch.arange(5, 12).repeat(3, 1),
        cols_BC=torch.arange(2, 7).repeat(3, 1),
        num_rows_B=ROWS,
        num_cols_B=COLS,
        coded_BRHC=EncodedTensor(codec=request.param, parts=parts),
    )


@pytest.fixture
def adapters() -> Adapters:
    found = Adapters(heads=(6, 4), hidden_sizes=(1, 1))
    found.initialise("pytorch", seed=0)
    return found


@pytest.fixture
def projected() -> tuple[Tensor, Tensor]:
    """Queries of the rows and keys, 4 heads of size 8."""
    generator = torch.Generator().manual_seed(1)
    query, key = (torch.randn(3, 4, length, 8, generator=generator) for length in (7, 12))
    return query.requires_grad_(), key.requires_grad_()


def pair(adapters: Adapters, targets: AttentionTargets) -> RowsOfPair:
    weight_ST, bias_S = adapters.attention_weights()
    return RowsOfPair(targets=targets, teacher=(0,), heads=HeadWeights(weight_ST=weight_ST, bias_S=bias_S))


def row_inputs(query_BHRd: Tensor, key_BHLd: Tensor) -> RowInputs:
    rows_BR = torch.arange(5, 12).repeat(3, 1)
    return RowInputs(query_BHRd=query_BHRd, key_BHLd=key_BHLd, rows_BR=rows_BR, scaling=0.3)


def student_attention(query_BHRd: Tensor, key_BHLd: Tensor) -> Tensor:
    scores = query_BHRd @ key_BHLd.transpose(2, 3) * 0.3
    return scores.masked_fill(torch.arange(12) > torch.arange(5, 12)[:, None], -torch.inf).softmax(-1)[..., 2:7]


@pytest.mark.parametrize("rows_at_once", [1, 2, 7, 100])
def test_chunks_change_neither_loss_nor_gradients(
    targets: AttentionTargets, adapters: Adapters, projected: tuple[Tensor, Tensor], rows_at_once: int
) -> None:
    leaves: list[Tensor] = [*projected, *adapters.attn_adapter.parameters()]
    adapted = adapters.adapt_attention(targets.teacher_BHRC)
    whole = attention_loss(adapted, student_attention(*projected), ROWS, COLS).sum()
    chunk_bytes = rows_at_once * 4 * 3 * 4 * 12
    found = chunked_attention_loss(pair(adapters, targets), row_inputs(*projected), chunk_bytes=chunk_bytes)
    assert found.count == 4 * (7 * 4 + 3 * 5)
    torch.testing.assert_close(found.total, whole, rtol=1e-6, atol=0.0)
    gradients = (torch.autograd.grad(loss, leaves) for loss in (found.total, whole))
    for own, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(own, expected, rtol=1e-5, atol=1e-6)


def test_padding_may_hold_anything(
    targets: AttentionTargets, adapters: Adapters, projected: tuple[Tensor, Tensor]
) -> None:
    coded = EncodedTensor.plain(targets.stored_BRHC.decode().float().clone())
    spoiled = EncodedTensor.plain(coded.decode().clone())
    for sample, (rows, cols) in enumerate(zip(ROWS, COLS, strict=True)):
        spoiled.parts[""][sample, rows:], spoiled.parts[""][sample, :, :, cols:] = torch.inf, torch.nan
    sound, found = (
        chunked_attention_loss(pair(adapters, replace(targets, coded_BRHC=x)), row_inputs(*projected), chunk_bytes=1)
        for x in (coded, spoiled)
    )
    assert torch.equal(sound.total, found.total)
    empty = replace(targets, num_rows_B=[0, 0, 0])
    assert chunked_attention_loss(pair(adapters, empty), row_inputs(*projected), chunk_bytes=1).count == 0


def test_padded_queries_may_be_anything(
    targets: AttentionTargets, adapters: Adapters, projected: tuple[Tensor, Tensor]
) -> None:
    """Nothing of them reaches the loss or the gradients of what is real."""
    query, key = projected
    spoiled = query.detach().clone()
    for sample, rows in enumerate(ROWS):
        spoiled[sample, :, rows:] = 1e3
    spoiled.requires_grad_()
    sound, found = (
        chunked_attention_loss(pair(adapters, targets), row_inputs(x, key), chunk_bytes=1).total
        for x in (query, spoiled)
    )
    assert torch.equal(sound, found)
    assert torch.equal(*(torch.autograd.grad(total, key)[0] for total in (sound, found)))


@pytest.mark.parametrize(
    ("given", "device", "mib"),
    [(None, "cpu", 8), (None, "cuda", 256), (None, "meta", 256), (3, "cpu", 3), (3, "cuda", 3)],
)
def test_a_chunk_is_as_large_as_the_device_allows(given: int | None, device: str, mib: int) -> None:
    assert LossConfig(attention_chunk_mib=given).attention_chunk_bytes(device) == mib << 20
