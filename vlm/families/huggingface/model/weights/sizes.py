"""Size of any vision-language model of transformers, counted on a copy without memory."""

from pathlib import Path
from typing import Any

from torch import nn

from alignkd.vlm.families.huggingface.model.config import HuggingFaceConfig, empty_model
from alignkd.vlm.families.huggingface.model.parts import (
    layers_of,
    projector_names,
    text_config_of,
    tower_parameters,
)
from alignkd.vlm.families.huggingface.model.weights.quantization import is_quantizable
from alignkd.vlm.families.sizes import (
    ModelSize,
    TowerSize,
    names_of_other_matrices,
    shapes_of_linear_layers,
    tensors_of_layers,
)
from alignkd.vlm.weights.bitsandbytes import quantized_bytes

# Names of one setting of a vision tower in the configurations of different models.
_WIDTH, _DEPTH = ("hidden_size", "embed_dim"), ("num_hidden_layers", "depth")


def model_size(name: str, config: HuggingFaceConfig, folder: Path) -> ModelSize:
    """Shapes, parameter counts and bytes.

    Args:
        name: shown name.
        folder: the checkpoint, for messages.

    Raises:
        InputError: transformers cannot build the model.
    """
    model = empty_model(config.raw, folder / "config.json")
    text, vision = text_config_of(config.raw), config.raw.vision_config
    total = sum(parameter.numel() for parameter in model.parameters())
    tower = sum(parameter.numel() for parameter in tower_parameters(model))
    prefixes = projector_names(model)
    projector = sum(value.numel() for key, value in model.named_parameters() if key.startswith(prefixes))
    quantised = [
        module
        for layer in layers_of(model)[config.attention_layer + 1 :]
        for module in layer.modules()
        if type(module) is nn.Linear and is_quantizable(module)
    ]
    head_dim = int(getattr(text, "head_dim", None) or config.hidden_size // config.num_heads)
    key_heads = int(getattr(text, "num_key_value_heads", None) or config.num_heads)
    widths = {"q": config.num_heads * head_dim, "k": key_heads * head_dim}
    kept = total - sum(linear.weight.numel() for linear in quantised)
    return ModelSize(
        name=name,
        num_layers=config.num_layers,
        hidden_size=config.hidden_size,
        num_heads=config.num_heads,
        num_key_value_heads=key_heads,
        head_dim=head_dim,
        intermediate_size=_intermediate_size(text),
        vocab_size=config.vocab_size,
        max_positions=config.max_positions,
        more_norms=max(0, _normed(layers_of(model)[config.attention_layer], widths) - 2 * config.hidden_size),
        tied_head=model.get_output_embeddings().weight is model.get_input_embeddings().weight,
        vision_tower=str(vision.model_type),
        image_size=None,
        vision_tokens=None,
        tower=TowerSize(
            patch_size=_patch_size(vision),
            patches=None,
            hidden_size=_first(vision, _WIDTH),
            intermediate_size=int(getattr(vision, "intermediate_size", None) or 4 * _first(vision, _WIDTH)),
            num_layers=_first(vision, _DEPTH),
            levels=1 + len(getattr(vision, "deepstack_visual_indexes", None) or ()),
        ),
        parameters={
            "language_model": total - tower - projector,
            "vision_tower": tower,
            "projector": projector,
            "total": total,
        },
        weight_bytes={
            "float32": 4 * total,
            "bfloat16": 2 * total,
            "int8": 2 * kept + sum(quantized_bytes(linear, "int8") for linear in quantised),
            "nf4": 2 * kept + sum(quantized_bytes(linear, "nf4") for linear in quantised),
        },
        layer_tensors=tensors_of_layers(layers_of(model)),
        linear_layers=shapes_of_linear_layers(layers_of(model)),
        other_matrices=names_of_other_matrices(layers_of(model)),
    )


def _normed(layer: nn.Module, widths: dict[str, int]) -> int:
    """Values per token that the norms of a layer take.

    Args:
        widths: of all heads of queries and of keys, whose norms have the weights of one head.
    """
    norms = {
        name.rpartition(".")[2]: module for name, module in layer.named_modules() if "Norm" in type(module).__name__
    }
    weights = {name: getattr(module, "weight", None) for name, module in norms.items()}
    return sum(widths.get(name.partition("_")[0], w.numel()) for name, w in weights.items() if w is not None)


def _first(config: Any, names: tuple[str, ...]) -> int:
    return next(int(value) for name in names if isinstance(value := getattr(config, name, None), int))


def _patch_size(vision: Any) -> int:
    size = vision.patch_size
    return int(size if isinstance(size, int) else size[0])


def _intermediate_size(text: Any) -> int:
    """Width of the MLP of a layer; the widest where they differ, the experts of one token where it has experts."""
    found = getattr(text, "intermediate_size", None) or text.num_experts_per_tok * text.moe_intermediate_size
    return found if isinstance(found, int) else max(found)
