"""Sizes of a model of transformers, read from its configuration and a copy of the model without memory."""

import inspect
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForImageTextToText
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

from alignkd.vlm.errors import InputError, one_line
from alignkd.vlm.families.huggingface.model.parts import attention_layers_of, layers_of, text_config_of
from alignkd.vlm.families.huggingface.model.quiet import quiet

# Images have been given to a model as already encoded (`mm_encoder_outputs`) since this version.
NEEDED_TRANSFORMERS = "5.18"


@dataclass(frozen=True, kw_only=True)
class HuggingFaceConfig:
    """Sizes of one model.

    Attributes:
        raw: the configuration as transformers has it.
        num_heads: H, query heads of the first layer that has attention.
        hidden_size: D, of the decoder.
        vocab_size: V, rows of the head.
        vision_tokens: always None: the number of tokens of an image depends on the image in general.
        attention_layers: numbers of the decoder layers that have attention.
        max_positions: maximum sequence length.
        num_layers: layers of the decoder.
        num_parameters: parameters of the whole model; a matrix that embedding and head share counts once.
        image_token_id: the id at the positions of vision tokens.
    """

    raw: Any
    num_heads: int
    hidden_size: int
    vocab_size: int
    attention_layers: tuple[int, ...]
    max_positions: int
    num_layers: int
    num_parameters: int
    image_token_id: int
    vision_tokens: int | None = None

    @property
    def pads_vocabulary(self) -> bool:
        """True: rows of the head after the tokenizer's entries are padding."""
        return True

    @property
    def attention_layer(self) -> int:
        """The first of `attention_layers`."""
        return self.attention_layers[0]

    @property
    def model_type(self) -> str:
        """Name of the architecture in transformers."""
        return str(self.raw.model_type)


def load_config(folder: Path) -> HuggingFaceConfig:
    """The sizes of a checkpoint; needs no weights.

    Raises:
        InputError: `config.json` is unusable, or of a model that is not supported.
    """
    path = folder / "config.json"
    return sizes_of(_read(path), path)


def sizes_of(raw: Any, path: Path) -> HuggingFaceConfig:
    """The sizes of a configuration.

    Args:
        path: its file, for messages.

    Raises:
        InputError: as `load_config`.
    """
    model = empty_model(raw, path)
    text = text_config_of(raw)
    layers, head = attention_layers_of(model), model.get_output_embeddings()
    lacking = [
        what
        for what, there in (
            ("get_image_features", hasattr(model.base_model, "get_image_features")),
            ("decoder layers with self_attn", bool(layers)),
            ("a head", head is not None and hasattr(head, "weight")),
            ("image_token_id", _image_token(raw) is not None),
            ("an own base model", model.base_model is not model),
            ("mm_encoder_outputs", "mm_encoder_outputs" in inspect.signature(model.base_model.forward).parameters),
        )
        if not there
    ]
    if lacking:
        raise InputError(
            f"{path}: model_type {raw.model_type!r} has no {', no '.join(lacking)}; supported are models whose images "
            "become tokens of a decoder, such as Qwen2.5-VL, Gemma 3, LLaVA or InternVL, from transformers "
            f"{NEEDED_TRANSFORMERS} on"
        )
    return HuggingFaceConfig(
        raw=raw,
        num_heads=int(text.num_attention_heads),
        hidden_size=int(text.hidden_size),
        vocab_size=int(head.weight.shape[0]),
        attention_layers=layers,
        max_positions=int(text.max_position_embeddings),
        num_layers=len(layers_of(model)),
        num_parameters=sum(parameter.numel() for parameter in model.parameters()),
        image_token_id=int(_image_token(raw)),
    )


def empty_model(raw: Any, path: Path) -> Any:
    """The model of a configuration on the meta device, which needs no memory.

    Raises:
        InputError: transformers cannot build it.
    """
    try:
        with torch.device("meta"), quiet():
            return AutoModelForImageTextToText.from_config(raw)
    except Exception as error:  # a configuration with wrong values fails anywhere in the model's constructors
        raise InputError(
            f"{path}: transformers cannot build a model of it ({type(error).__name__}: {one_line(error)[:160]}); copy "
            "config.json again, or install what the message names"
        ) from error


def _read(path: Path) -> Any:
    try:
        with quiet():
            raw = AutoConfig.from_pretrained(path.parent, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # strict configurations raise classes of their own
        raise InputError(
            f"{path}: not a configuration that transformers can read ({one_line(error)[:160]}); copy it again, or "
            "install a transformers that knows this model"
        ) from error
    if raw.model_type not in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES:
        raise InputError(
            f"{path}: model_type {raw.model_type!r} is not a vision-language model of transformers "
            "(AutoModelForImageTextToText); give a checkpoint of MobileVLM or of such a model"
        )
    # SDPA, or eager for models that SDPA cannot compute; never what config.json names
    raw._attn_implementation = None
    return raw


def _image_token(raw: Any) -> Any:
    return getattr(raw, "image_token_id", None)
