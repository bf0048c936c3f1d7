"""Chosen rows and columns of layer 0 against transformers' own full attention matrices."""

import copy
from pathlib import Path

import pytest
import torch

from alignkd.vlm.families.mobilevlm.model.config import VLMConfig, load_config
from alignkd.vlm.families.mobilevlm.model.mobilevlm import MobileVLM
from alignkd.vlm.families.mobilevlm.weights.checkpoint import load_model
from alignkd.vlm.families.mobilevlm.weights.loading import new_model


def full_attention(model: MobileVLM, embeds_BLD: torch.Tensor) -> torch.Tensor:
    """[B, H, L, L] from transformers' eager path: the independent implementation."""
    eager = copy.deepcopy(model)
    eager.model.config._attn_implementation = "eager"
    output = eager.model(inputs_embeds=embeds_BLD, output_attentions=True, use_cache=False)
    attention: torch.Tensor = output.attentions[0]
    return attention


@pytest.mark.parametrize("key_value_heads", [8, 2])
def test_equals_output_attentions_also_with_grouped_keys(golden: Path, key_value_heads: int) -> None:
    config = load_config(golden / "teacher", vision_config=golden / "clip")
    config.llama.num_key_value_heads = key_value_heads
    model = new_model(VLMConfig(config.raw, config.llama, config.vision, {}), seed=1)
    embeds = torch.randn(2, 30, config.hidden_size, generator=torch.Generator().manual_seed(0))
    rows, cols = torch.tensor([[20, 21, 29], [5, 6, 7]]), torch.tensor([[1, 2, 3, 4], [0, 5, 6, 9]])
    with torch.no_grad():
        got = model.first_layer_attention(embeds, rows, cols)
        full = full_attention(model, embeds)
    for sample in range(2):
        expected = full[sample][:, rows[sample]][:, :, cols[sample]]
        torch.testing.assert_close(got[sample], expected, rtol=1e-5, atol=1e-7)


def test_gradient_equals_that_of_the_full_matrix(golden: Path) -> None:
    model = load_model(golden / "student", vision_config=golden / "clip")
    embeds = torch.randn(1, 12, model.config.hidden_size, generator=torch.Generator().manual_seed(0))
    rows, cols = torch.tensor([[8, 11]]), torch.tensor([[2, 3, 4]])
    with model.watched_first_layer() as first_layer:
        model.decoder_states(embeds)
    inputs = first_layer.row_inputs(rows)
    scores_BHRL = inputs.query_BHRd @ inputs.key_BHLd.transpose(2, 3) * inputs.scaling
    probs_BHRL = scores_BHRL.masked_fill(torch.arange(12) > rows[:, None, :, None], -torch.inf).softmax(-1)
    probs_BHRL[..., cols[0]].square().sum().backward()
    got = model.model.layers[0].self_attn.q_proj.weight.grad
    twin = copy.deepcopy(model)
    twin.zero_grad()
    twin.model.config._attn_implementation = "eager"
    attention = twin.model(inputs_embeds=embeds, output_attentions=True, use_cache=False).attentions[0]
    attention[:, :, rows[0]][..., cols[0]].square().sum().backward()
    expected = twin.model.layers[0].self_attn.q_proj.weight.grad
    assert float((got - expected).norm()) <= 1e-5 * float(expected.norm())


@pytest.mark.parametrize("key_value_heads", [8, 2])
def test_queries_and_keys_of_a_forward_pass_give_the_same(golden: Path, key_value_heads: int) -> None:
    """Also of some samples of its batch, as where others have no image."""
    config = load_config(golden / "teacher", vision_config=golden / "clip")
    config.llama.num_key_value_heads = key_value_heads
    model = new_model(VLMConfig(config.raw, config.llama, config.vision, {}), seed=1)
    embeds = torch.randn(3, 30, config.hidden_size, generator=torch.Generator().manual_seed(0))
    rows, cols, some = torch.tensor([[20, 21, 29], [5, 6, 7]]), torch.tensor([[1, 2], [0, 5]]), torch.tensor([0, 2])
    with torch.no_grad():
        expected = model.first_layer_attention(embeds[some], rows, cols)
        alone = model.decoder_states(embeds)
        with model.watched_first_layer() as first_layer:
            assert torch.equal(model.decoder_states(embeds), alone)
        assert first_layer.num_samples == 3
        found = first_layer.attention(rows, cols, some, chunk_bytes=1000)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-7)
        before = first_layer.query_BLD, first_layer.key_BLD
        model.decoder_states(embeds + 1)
    assert first_layer.query_BLD is before[0] and first_layer.key_BLD is before[1]  # nothing is kept afterwards


def test_nothing_is_kept_of_a_pass_after_one_that_failed(golden: Path) -> None:
    model = load_model(golden / "student", vision_config=golden / "clip")
    embeds = torch.zeros(1, 4, model.config.hidden_size)
    with pytest.raises(torch.OutOfMemoryError), model.watched_first_layer() as first_layer:
        raise torch.OutOfMemoryError
    model.decoder_states(embeds)
    assert first_layer.query_BLD is None and first_layer.key_BLD is None
