"""The decoder's layers one after the other against the forward pass of transformers: the same bits."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from alignkd.vlm.families.mobilevlm.model.config import VLMConfig, load_config
from alignkd.vlm.families.mobilevlm.model.mobilevlm import MobileVLM
from alignkd.vlm.families.mobilevlm.weights.loading import new_model


def states_and_gradients(model: MobileVLM, embeds: Tensor, *, of_transformers: bool) -> list[Tensor]:
    model.zero_grad()
    if of_transformers:
        states = model.model(inputs_embeds=embeds, use_cache=False).last_hidden_state
    else:
        states = model.decoder_states(embeds)
    states.square().sum().backward()
    return [
        states.detach(),
        *(value.grad.clone() for value in model.model.layers.parameters() if value.grad is not None),
    ]


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("key_value_heads", [8, 2])
def test_states_are_those_of_transformers(golden: Path, key_value_heads: int, attention: str) -> None:
    config = load_config(golden / "teacher", vision_config=golden / "clip")
    config.llama.num_key_value_heads = key_value_heads
    model = new_model(VLMConfig(config.raw, config.llama, config.vision, {}), seed=1)
    model.model.config._attn_implementation = attention
    embeds = torch.randn(2, 30, config.hidden_size, generator=torch.Generator().manual_seed(0))
    own, expected = (states_and_gradients(model, embeds, of_transformers=which) for which in (False, True))
    assert len(own) > 10 and len(own) == len(expected)
    assert all(map(torch.equal, own, expected))
