"""Where the parts of a model of transformers are: decoder, tower, projector, first attention layer."""

from collections.abc import Iterator
from typing import Any

from torch import nn

# Sub-modules that other inputs than images and text reach; they are never trained.
OTHER_INPUTS = ("audio", "speech", "video")


def decoder_of(model: Any) -> nn.Module:
    """The language model without its head; has `layers`."""
    decoder: nn.Module = model.get_decoder()
    return decoder


def layers_of(model: Any) -> list[nn.Module]:
    """The decoder's layers in order; empty if it has none under the usual name."""
    return list(getattr(decoder_of(model), "layers", ()))


def attention_of(layer: nn.Module) -> nn.Module | None:
    """The attention module of a decoder layer; None if it has none, as convolutions and linear attention."""
    attention = getattr(layer, "self_attn", None)
    return attention if isinstance(attention, nn.Module) else None


def attentions_of(model: Any) -> list[nn.Module]:
    """The attention modules of all decoder layers that have one."""
    found = (attention_of(layer) for layer in layers_of(model))
    return [attention for attention in found if attention is not None]


def tower_of(model: Any) -> nn.Module | None:
    """The vision tower; None if it cannot be told from the rest of the model."""
    tower: nn.Module = model.get_encoder("image")
    return None if tower in (model, model.base_model) else tower


def attention_layers_of(model: Any) -> tuple[int, ...]:
    """Numbers of the decoder layers that have attention."""
    return tuple(number for number, layer in enumerate(layers_of(model)) if attention_of(layer) is not None)


def text_config_of(config: Any) -> Any:
    """The part of a configuration that describes the decoder."""
    return config.get_text_config(decoder=True)


def is_projector_inside(name: str) -> bool:
    """Whether a child of the tower belongs to the projector: Qwen-VL and GLM-V keep it there as `*merger*`."""
    return "merger" in name


def has_projector_inside(tower: nn.Module) -> bool:
    """Whether the projector is a part of the tower module, so that the tower's own output cannot be replaced."""
    return any(is_projector_inside(name) for name, _ in tower.named_children())


def tower_parameters(model: Any) -> Iterator[nn.Parameter]:
    """The tower's own parameters, without a projector inside it."""
    tower = tower_of(model)
    if tower is None:
        return
    for name, parameter in tower.named_parameters():
        if not is_projector_inside(name.partition(".")[0]):
            yield parameter


def untrained_modules(model: Any) -> Iterator[nn.Module]:
    """Sub-modules for other inputs than images and text (`audio_tower`, `embed_audio`)."""
    for name, module in model.base_model.named_children():
        if any(word in name for word in OTHER_INPUTS):
            yield module


def projector_names(model: Any) -> tuple[str, ...]:
    """Names of the modules and parameters of the projector, as prefixes of the names of parameters of `model`.

    That is what the base model has beside tower, decoder and other inputs, and the `*merger*` inside the tower.
    """
    base = model.base_model
    prefix = next((f"{name}." for name, module in model.named_modules() if module is base and name), "")
    tower, decoder = tower_of(model), decoder_of(model)
    names: list[str] = []
    for name, child in base.named_children():
        if tower is not None and child is tower:
            inner = [inner for inner, _ in child.named_children() if is_projector_inside(inner)]
            names += [f"{prefix}{name}.{inner}." for inner in inner]
        elif tower is not None and any(module is tower for module in child.modules()):
            names += _beside(child, tower, f"{prefix}{name}.")
        elif not any(module is decoder for module in child.modules()) and not _is_other(name):
            names.append(f"{prefix}{name}.")
    names += [f"{prefix}{name}" for name, _ in base.named_parameters(recurse=False)]
    return tuple(names)


def _is_other(name: str) -> bool:
    return any(word in name for word in OTHER_INPUTS)


def _beside(parent: nn.Module, tower: nn.Module, prefix: str) -> list[str]:
    """The children of a wrapper around the tower, without the tower."""
    return [f"{prefix}{name}." for name, child in parent.named_children() if child is not tower]
