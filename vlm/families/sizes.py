"""Shapes, parameter counts and weight bytes of a model of any family, from its configuration alone."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from torch import nn


@dataclass(frozen=True, kw_only=True)
class TowerSize:
    """Shapes of a vision tower.

    Attributes:
        patch_size: side of a patch in pixels.
        patches: patches of an image; None if the number depends on the image.
        hidden_size, intermediate_size: width of a layer and of its MLP.
        num_layers: layers that run.
        levels: embeddings that the decoder receives for each vision token; more than one with deepstack features.
    """

    patch_size: int
    patches: int | None
    hidden_size: int
    intermediate_size: int
    num_layers: int
    levels: int = 1


@dataclass(frozen=True, kw_only=True)
class ModelSize:
    """Shapes, parameter counts and weight bytes of a model.

    Attributes:
        name: hub id or folder.
        num_layers, hidden_size, num_heads, num_key_value_heads, head_dim, intermediate_size, vocab_size, max_positions:
            shapes of the language model.
        more_norms: values per token that the norms of a decoder layer take beyond two of width `hidden_size`: norms of
            queries and keys, and of outputs.
        tied_head: whether embedding and head share one matrix.
        vision_tower: name of the vision tower.
        image_size: side of the tower's input in pixels; None if it depends on the image.
        vision_tokens: vision tokens per image; None if they depend on the image.
        tower: shapes of the vision tower.
        parameters: counts of `language_model` (with embeddings and head), `vision_tower`, `projector`, `total`. A
            matrix that embedding and head share counts once.
        weight_bytes: bytes of all weights by precision; `int8` and `nf4` quantise the decoder, the rest has 16 bits.
        layer_tensors: elements of every parameter of each decoder layer.
        linear_layers: inputs and outputs of every linear layer of the decoder layers, by its name below the decoder.
        other_matrices: names of the matrices of the decoder layers that are no linear layers, as experts in one tensor.
    """

    name: str
    num_layers: int
    hidden_size: int
    num_heads: int
    num_key_value_heads: int
    head_dim: int
    intermediate_size: int
    vocab_size: int
    max_positions: int
    more_norms: int
    tied_head: bool
    vision_tower: str
    image_size: int | None
    vision_tokens: int | None
    tower: TowerSize
    parameters: Mapping[str, int]
    weight_bytes: Mapping[str, int]
    layer_tensors: tuple[tuple[int, ...], ...] = ()
    linear_layers: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    other_matrices: tuple[str, ...] = ()


def named_linear_layers(decoder_layers: Sequence[nn.Module]) -> Iterator[tuple[str, nn.Linear]]:
    """Every linear layer of the decoder layers and its name below the decoder, `layers.0.self_attn.q_proj`.

    Quantised layers are linear layers too; bitsandbytes derives them.
    """
    for number, layer in enumerate(decoder_layers):
        for name, module in layer.named_modules():
            if isinstance(module, nn.Linear):
                yield f"layers.{number}.{name}", module


def tensors_of_layers(decoder_layers: Sequence[nn.Module]) -> tuple[tuple[int, ...], ...]:
    """Elements of every parameter of each decoder layer."""
    return tuple(tuple(parameter.numel() for parameter in layer.parameters()) for layer in decoder_layers)


def shapes_of_linear_layers(decoder_layers: Sequence[nn.Module]) -> dict[str, tuple[int, int]]:
    """Inputs and outputs of every linear layer of the decoder layers, by its name below the decoder."""
    return {name: (linear.in_features, linear.out_features) for name, linear in named_linear_layers(decoder_layers)}


def names_of_other_matrices(decoder_layers: Sequence[nn.Module]) -> tuple[str, ...]:
    """Names below the decoder of parameters with two axes or more that belong to no linear layer."""
    linear = {id(layer.weight) for _, layer in named_linear_layers(decoder_layers)}
    return tuple(
        f"layers.{number}.{name}"
        for number, layer in enumerate(decoder_layers)
        for name, parameter in layer.named_parameters()
        if parameter.ndim > 1 and id(parameter) not in linear
    )
