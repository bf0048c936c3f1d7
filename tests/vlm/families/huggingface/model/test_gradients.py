"""Gradients of a loss on hidden states and first-layer attention, against eager transformers alone."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from alignkd.vlm.attention.attention_rows import attention_weights
from alignkd.vlm.families.huggingface.model.recorder import recorded_layers
from alignkd.vlm.inputs.batch import SequenceBatch


def loss_of(case: Any, hidden_BLD: Tensor, tqv: list[Tensor]) -> Tensor:
    """Fixed weights, so that no gradient is zero by symmetry."""
    generator = torch.Generator().manual_seed(1)
    parts = []
    for row, sample in enumerate(case.samples):
        hidden = hidden_BLD[row, : sample.example.positions.length]
        parts.append((hidden * torch.randn(hidden.shape, generator=generator)).sum())
    parts += [(rows * torch.randn(rows.shape, generator=generator)).sum() for rows in tqv]
    return torch.stack(parts).sum()


def positions_of(sample: Any) -> tuple[Tensor, Tensor]:
    positions = sample.example.positions
    return (
        torch.from_numpy(positions.tqv_query_positions).long(),
        torch.from_numpy(positions.vision_positions).long(),
    )


def our_gradients(case: Any, *, checkpointed: bool) -> dict[str, Tensor]:
    model = case.copied()
    model.train()
    if checkpointed:
        model.checkpoint_layers()
    batch: SequenceBatch = case.batch
    vision = model.encode_images(batch.images, batch.image_samples_I.tolist())
    with model.watched_first_layer() as first:
        hidden_BLD = model.hidden_states(batch, vision)
    tqv = []
    for row, sample in enumerate(case.samples):
        rows, columns = positions_of(sample)
        if not len(columns):
            continue
        inputs = first.row_inputs(rows[None], torch.tensor([row]))
        weights_BHRL, sums_BHR1 = attention_weights_with_gradient(inputs, columns[None])
        tqv.append((weights_BHRL / sums_BHR1)[0][:, :, columns])
    loss_of(case, hidden_BLD, tqv).backward()
    return {name: value.grad for name, value in model.model.named_parameters() if value.grad is not None}


def attention_weights_with_gradient(inputs: Any, columns_BC: Tensor) -> tuple[Tensor, Tensor]:
    """Differentiable: the plain formula, written again."""
    scores = inputs.query_BHRd @ inputs.key_BHLd.transpose(2, 3) * inputs.scaling
    if inputs.softcap is not None:
        scores = inputs.softcap * torch.tanh(scores / inputs.softcap)
    visible = inputs.visible_BRL
    if visible is None:
        visible = torch.arange(scores.shape[-1]) <= inputs.rows_BR[..., None]
    weights = scores.masked_fill(~visible[:, None], -torch.inf).softmax(-1)
    with torch.no_grad():
        plain, sums = attention_weights(inputs, columns_BC)
        length = plain.shape[-1]
        assert torch.allclose(plain / sums, weights[..., :length], atol=1e-6)
    return weights, torch.ones(())


def own_gradients(case: Any) -> dict[str, Tensor]:
    """Each sample through the whole model alone."""
    model = case.eager
    model.train()
    model.zero_grad(set_to_none=True)
    length = max(len(own.hidden) for own in case.reference)
    rows_of, columns_of = zip(*(positions_of(sample) for sample in case.samples), strict=True)
    states, tqv = [], []
    layer = case.checkpoint.config.attention_layer
    for sample, rows, columns in zip(case.samples, rows_of, columns_of, strict=True):
        output = model(**sample.whole, output_attentions=True, output_hidden_states=True, use_cache=False)
        states.append(output.hidden_states[-1][0])
        if len(columns):
            number = layer if len(output.attentions) == case.checkpoint.config.num_layers else 0
            tqv.append(output.attentions[number][0][:, rows][:, :, columns])
    padded = torch.stack([torch.nn.functional.pad(one, (0, 0, 0, length - len(one))) for one in states])
    loss_of(case, padded, tqv).backward()
    found = {name: value.grad.clone() for name, value in model.named_parameters() if value.grad is not None}
    model.zero_grad(set_to_none=True)
    model.eval()
    return found


@pytest.fixture(scope="module")
def own_gradients_of() -> Callable[[Any], dict[str, Tensor]]:
    known: dict[str, dict[str, Tensor]] = {}
    return lambda case: known[case.name] if case.name in known else known.setdefault(case.name, own_gradients(case))


@pytest.mark.parametrize("checkpointed", [False, True], ids=["plain", "checkpointed"])
def test_gradients_equal_those_of_transformers(case: Any, checkpointed: bool, own_gradients_of: Any) -> None:
    ours, own = our_gradients(case, checkpointed=checkpointed), own_gradients_of(case)
    assert ours.keys() == own.keys()
    largest = max(float(gradient.norm()) for gradient in own.values())
    # Qwen3.5's linear attention computes in float32 whatever the dtype, in chunks that depend on the length
    limit = 1e-3 if case.name == "qwen3_5" else 1e-4
    for name, gradient in own.items():
        # the true gradient of some biases of keys is 0: a softmax does not see what all scores have in common
        scale = max(float(gradient.norm()), 1e-3 * largest)
        assert float((ours[name] - gradient).norm()) / scale < limit, name


def test_queries_without_gradient_are_an_error(cases: dict[str, Any]) -> None:
    """Reentrant checkpointing runs layers without a graph; the loss would lose its gradient without a sign."""
    case = cases["gemma3"]
    model = case.load()
    batch = case.batch
    with recorded_layers([model.first_attention]) as (layer,), torch.no_grad():
        vision = model.encode_images(batch.images, batch.image_samples_I.tolist())
        model.hidden_states(batch, vision)
    with pytest.raises(RuntimeError, match="recorded without gradient"):
        layer.row_inputs(torch.zeros(len(case.samples), 1, dtype=torch.long))
    with torch.no_grad():
        layer.row_inputs(torch.zeros(len(case.samples), 1, dtype=torch.long))


def test_only_projector_and_decoder_are_trained(case: Any) -> None:
    model = case.copied()
    model.freeze_vision_tower()
    batch = case.batch
    vision = model.encode_images(batch.images, batch.image_samples_I.tolist())
    model.head(model.hidden_states(batch, vision)).square().mean().backward()
    tower = {name for name, value in model.named_parameters() if not value.requires_grad}
    assert tower and not any(name.startswith(model.projector_prefixes) for name in tower)
    for name, value in model.named_parameters():
        assert (value.grad is None) == (name in tower), name
