"""LoRA in a student: added by peft beside the chosen linear layers, and merged into them at the end.

peft is imported where it is needed: it takes seconds.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from alignkd.student_train.trained.settings import LoraSettings
from alignkd.student_train.trained.targets import lora_names
from alignkd.vlm.families.family import VisionLanguageModel
from alignkd.vlm.families.sizes import named_linear_layers
from alignkd.vlm.weights.bitsandbytes import without_advice

ADAPTER = "default"  # peft's name of a model's only adapter
FIRST, SECOND = f"lora_A.{ADAPTER}.weight", f"lora_B.{ADAPTER}.weight"


def is_lora_parameter(name: str) -> bool:
    """Whether a parameter of this name is one of LoRA's matrices."""
    return name.endswith((FIRST, SECOND))


def add_lora(model: VisionLanguageModel, lora: LoraSettings, *, seed: int) -> None:
    """Put LoRA beside the chosen linear layers of the decoder; the model computes the same as before.

    The first matrix has peft's random values, drawn on the host, so that they depend on `seed` alone; the second one is
    0. Modules with dropout are in training mode, all others stay in evaluation mode.

    Raises:
        TrainError: as `lora_names`.
    """
    without_advice()
    from peft import LoraConfig, inject_adapter_in_model

    linear_layers = dict(named_linear_layers(model.decoder_layers))
    chosen = {id(linear_layers[name]) for name in lora_names(lora.targets, linear_layers).chosen}
    # peft would apply its rules for models of transformers to one that has a configuration
    holder = nn.Module()
    holder.model = model
    paths = [re.escape(name) for name, module in holder.named_modules() if id(module) in chosen]
    config = LoraConfig(
        r=lora.rank, lora_alpha=lora.alpha, lora_dropout=lora.dropout, target_modules="|".join(paths), bias="none"
    )
    with torch.random.fork_rng():
        inject_adapter_in_model(config, holder)
    _draw(model, seed)
    for _, layer in lora_layers(model):
        layer.lora_dropout.train()


def lora_layers(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """Name and module of every linear layer with LoRA, in the order of the model."""
    for name, module in model.named_modules():
        if hasattr(module, "lora_A") and hasattr(module, "get_base_layer"):
            yield name, module


def merge(model: VisionLanguageModel, masters: Mapping[str, Tensor], scale: float) -> None:
    """Add the product of LoRA's matrices to the weights and remove LoRA from the model.

    Args:
        masters: LoRA's matrices in float32, by their names in `model`.
        scale: `LoraSettings.scale`.
    """
    for name, module in list(lora_layers(model)):
        linear = module.get_base_layer()
        add_product(linear, masters[f"{name}.{FIRST}"], masters[f"{name}.{SECOND}"], scale)
        model.set_submodule(name, linear)


@torch.no_grad()
def add_product(linear: nn.Linear, first_RI: Tensor, second_OR: Tensor, scale: float) -> None:
    """Add `scale * second @ first`, computed in float32, to a weight [O, I]; rounded once, to the weight's dtype."""
    weight_OI = linear.weight
    first_RI, second_OR = (matrix.to(weight_OI.device, torch.float32) for matrix in (first_RI, second_OR))
    weight_OI.copy_(weight_OI.float() + scale * (second_OR @ first_RI))


def _draw(model: nn.Module, seed: int) -> None:
    """Initial values as in peft, which takes those of `nn.Linear` for the first matrix."""
    generator = torch.Generator().manual_seed(seed)
    for _, module in lora_layers(model):
        first, second = module.lora_A[ADAPTER].weight, module.lora_B[ADAPTER].weight
        drawn = nn.init.kaiming_uniform_(torch.empty(first.shape), a=5**0.5, generator=generator)
        first.data.copy_(drawn)
        second.data.zero_()
