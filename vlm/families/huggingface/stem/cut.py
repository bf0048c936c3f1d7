"""A model of transformers that ends in the attention of one of its layers, and has no vision tower.

The class of the model stays as it is, so masks, positions, norms and scales are its own. What a pass to the attention
function of that layer does not reach is removed; the vision tower is replaced by a module that returns given outputs.
"""

import copy
from collections import deque
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers.utils import ModelOutput

from alignkd.vlm.families.huggingface.model.config import HuggingFaceConfig, empty_model
from alignkd.vlm.families.huggingface.model.parts import (
    attention_of,
    has_projector_inside,
    layers_of,
    text_config_of,
    tower_of,
)
from alignkd.vlm.families.huggingface.model.tower_outputs import copied

# Architectures whose stem is compared with the live model by tests.
WITH_STEM = (
    "gemma3",
    "idefics3",
    "internvl",
    "lfm2_vl",
    "llava",
    "llava_next",
    "llava_onevision",
    "mistral3",
    "smolvlm",
)
# Names in different models of what is called after the attention function.
_AFTER_ATTENTION = ("o_proj", "out_proj", "dense")


class ReplayedTower(nn.Module):
    """In the place of a vision tower: returns outputs that were recorded before.

    Attributes:
        outputs: what the next calls return, in order.
        dtype: dtype in which they are returned.
    """

    def __init__(self, tower: Any) -> None:
        super().__init__()
        # the projectors of some models read the size of a patch from the tower
        for name, value in vars(tower).items():
            if isinstance(value, int | float | str) and not name.startswith("_"):
                setattr(self, name, value)
        self.config = tower.config
        self.outputs: deque[ModelOutput] = deque()
        self.dtype = torch.float32

    def forward(self, *args: Any, **kwargs: Any) -> ModelOutput:
        """The next output, whatever the arguments."""
        return copied(self.outputs.popleft(), self.dtype)


def reason_without_stem(config: HuggingFaceConfig) -> str | None:
    """Why a model has no stem, as a phrase; None if it has one."""
    model = empty_model(config.raw, Path("config.json"))
    tower = tower_of(model)
    if tower is None:
        return f"model_type {config.model_type!r} has no vision tower that can be told from its projector"
    if has_projector_inside(tower):
        return f"the projector of model_type {config.model_type!r} is inside its vision tower"
    if getattr(text_config_of(config.raw), "hidden_size_per_layer_input", None):
        return f"the embeddings of model_type {config.model_type!r} are one table for all layers"
    if config.model_type not in WITH_STEM:
        return f"model_type {config.model_type!r} is not among those whose stem is tested: {', '.join(WITH_STEM)}"
    return None


def cut_model(config: HuggingFaceConfig, depth: int) -> Any:
    """The model on the meta device, with the names of the whole model.

    Args:
        depth: number of decoder layers; the last one has attention.
    """
    raw = copy.deepcopy(config.raw)
    _cut_layers(text_config_of(raw), depth)
    model = empty_model(raw, Path("config.json"))
    tower, output = tower_of(model), model.get_output_embeddings()
    assert tower is not None
    replace_module(model, tower, ReplayedTower(tower))
    replace_module(model, output, nn.Identity())
    last = layers_of(model)[-1]
    attention = attention_of(last)
    for name, child in last.named_children():
        if child is not attention and any(parameter.dim() > 1 for parameter in child.parameters()):
            setattr(last, name, nn.Identity())
    for name in _AFTER_ATTENTION:
        if hasattr(attention, name):
            setattr(attention, name, nn.Identity())
    return model


def _cut_layers(text: Any, count: int) -> None:
    depth = text.num_hidden_layers
    for name, value in vars(text).items():
        if "layer" in name and isinstance(value, list) and len(value) == depth:
            setattr(text, name, value[:count])
    text.num_hidden_layers = count


def replace_module(model: Any, old: nn.Module, new: nn.Module) -> None:
    """Put another module in the place of a sub-module."""
    name = next(name for name, module in model.named_modules() if module is old)
    parent, _, last = name.rpartition(".")
    setattr(model.get_submodule(parent), last, new)
