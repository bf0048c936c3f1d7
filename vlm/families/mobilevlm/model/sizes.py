"""The MobileVLM V2 family: the official `config.json` of each member, and the size of any model from its shapes.

Configs are those of the hub repositories `mtgv/MobileVLM_V2-*`, key by key.
"""

import json
from pathlib import Path
from typing import Any

import torch
from torch import nn

from alignkd.vlm.errors import InputError
from alignkd.vlm.families.mobilevlm.model.config import VLMConfig, parse_config
from alignkd.vlm.families.mobilevlm.model.mobilevlm import MobileVLM
from alignkd.vlm.families.mobilevlm.model.quantization import quantizable
from alignkd.vlm.families.sizes import (
    ModelSize,
    TowerSize,
    names_of_other_matrices,
    shapes_of_linear_layers,
    tensors_of_layers,
)
from alignkd.vlm.weights.bitsandbytes import quantized_bytes

_COMMON: dict[str, Any] = {
    "architectures": ["MobileLlamaForCausalLM"],
    "bos_token_id": 1,
    "eos_token_id": 2,
    "freeze_mm_mlp_adapter": False,
    "hidden_act": "silu",
    "image_aspect_ratio": "pad",
    "image_grid_pinpoints": None,
    "initializer_range": 0.02,
    "max_position_embeddings": 2048,
    "mm_hidden_size": 1024,
    "mm_projector_lr": None,
    "mm_projector_type": "ldpnetv2",
    "mm_use_im_patch_token": False,
    "mm_use_im_start_end": False,
    "mm_vision_select_feature": "patch",
    "mm_vision_select_layer": -2,
    "mm_vision_tower": "openai/clip-vit-large-patch14-336",
    "model_type": "mobilevlm",
    "pad_token_id": 0,
    "pretraining_tp": 1,
    "rms_norm_eps": 1e-06,
    "rope_scaling": None,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.33.1",
    "tune_mm_mlp_adapter": False,
    "use_cache": True,
    "use_mm_proj": True,
    "vision_tower_type": "clip",
    "vocab_size": 32000,
}
# The 3B's language model was trained in another framework, whose unused keys remain in its config.
_LEFT_OVER_3B: dict[str, Any] = {
    "_mlp_class": "LLaMAMLP",
    "_norm_class": "RMSNorm",
    "bias": False,
    "block_size": 2048,
    "gelu_approximate": "none",
    "lm_head_bias": False,
    "n_embd": 2560,
    "n_head": 16,
    "n_layer": 32,
    "n_query_groups": 16,
    "name": "huggy_llama_3b",
    "norm_eps": 1e-06,
    "org": "meta",
    "padded_vocab_size": 32000,
    "padding_multiple": 64,
    "parallel_residual": False,
    "rope_base": 10000,
    "rope_condense_ratio": 1,
    "rotary_percentage": 1.0,
    "shared_attention_norm": False,
}
_MEMBERS: dict[str, dict[str, Any]] = {
    "mtgv/MobileVLM_V2-1.7B": {
        "hidden_size": 2048,
        "intermediate_size": 5632,
        "max_sequence_length": 2048,
        "num_attention_heads": 16,
        "num_hidden_layers": 24,
        "num_key_value_heads": 16,
    },
    "mtgv/MobileVLM_V2-3B": {
        "hidden_size": 2560,
        "intermediate_size": 6912,
        "num_attention_heads": 32,
        "num_hidden_layers": 32,
        "num_key_value_heads": 32,
        **_LEFT_OVER_3B,
    },
    "mtgv/MobileVLM_V2-7B": {
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "max_position_embeddings": 4096,
        "num_attention_heads": 32,
        "num_hidden_layers": 32,
        "num_key_value_heads": 32,
        "rms_norm_eps": 1e-05,
        "transformers_version": "4.31.0",
    },
}
MEMBERS = tuple(_MEMBERS)


def official_config(name: str) -> dict[str, Any]:
    """The raw `config.json` of a family member, as the original saves it.

    Args:
        name: hub id, or its last part: `MobileVLM_V2-1.7B`.

    Raises:
        InputError: no such member.
    """
    for member, own in _MEMBERS.items():
        if name in (member, member.partition("/")[2]):
            return {"_name_or_path": member, **_COMMON, **own}
    raise InputError(f"{name}: not a model of the family; choose one of {', '.join(MEMBERS)}")


def family_config(name: str) -> VLMConfig:
    """The configuration of a family member, without files or network."""
    raw = official_config(name)
    return parse_config(raw, path=Path(raw["_name_or_path"]) / "config.json")


_SIZES: dict[str, ModelSize] = {}


def model_size(name: str, config: VLMConfig) -> ModelSize:
    """Shapes, parameter counts and bytes, counted on a model on the meta device, once for equal configurations."""
    described = json.dumps([name, config.raw, config.llama.to_dict(), config.vision.to_dict()], default=str)
    if described not in _SIZES:
        _SIZES[described] = _counted(name, config)
    return _SIZES[described]


def _counted(name: str, config: VLMConfig) -> ModelSize:
    with torch.device("meta"):
        model = MobileVLM(config)
    counts = {
        "language_model": 0,
        "vision_tower": _count(model.model.vision_tower),
        "projector": _count(model.model.mm_projector),
        "total": _count(model),
    }
    counts["language_model"] = counts["total"] - counts["vision_tower"] - counts["projector"]
    layers = [linear for _, linear in quantizable(model)]
    vision, select = config.vision, config.vision_select_layer
    kept = counts["total"] - sum(linear.weight.numel() for linear in layers)
    return ModelSize(
        name=name,
        num_layers=config.num_layers,
        hidden_size=config.hidden_size,
        num_heads=config.num_heads,
        num_key_value_heads=int(config.llama.num_key_value_heads),
        head_dim=config.hidden_size // config.num_heads,
        intermediate_size=int(config.llama.intermediate_size),
        vocab_size=config.vocab_size,
        max_positions=config.max_positions,
        more_norms=0,
        tied_head=False,
        vision_tower=str(config.raw.get("mm_vision_tower")),
        image_size=int(config.vision.image_size),
        vision_tokens=config.vision_tokens,
        tower=TowerSize(
            patch_size=int(vision.patch_size),
            patches=(int(vision.image_size) // int(vision.patch_size)) ** 2,
            hidden_size=int(vision.hidden_size),
            intermediate_size=int(vision.intermediate_size),
            num_layers=select if select >= 0 else int(vision.num_hidden_layers) + 1 + select,
        ),
        parameters=counts,
        weight_bytes={
            "float32": 4 * counts["total"],
            "bfloat16": 2 * counts["total"],
            "int8": 2 * kept + sum(quantized_bytes(linear, "int8") for linear in layers),
            "nf4": 2 * kept + sum(quantized_bytes(linear, "nf4") for linear in layers),
        },
        layer_tensors=tensors_of_layers(model.decoder_layers),
        linear_layers=shapes_of_linear_layers(model.decoder_layers),
        other_matrices=names_of_other_matrices(model.decoder_layers),
    )


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
