"""The attention of a record's text queries to its vision tokens in one decoder layer, wherever it comes from.

Shapes: H heads, Q text queries, P vision tokens of all images.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from alignkd.storage.codecs.settings import NOT_STORED, STEM
from alignkd.storage.record.record import Record
from alignkd.storage.schema.manifest import Manifest
from alignkd.storage.schema.targets.attention import attention_targets
from alignkd.storage.tools.layers.stored import StoredAttention, stored_attention
from alignkd.vlm.errors import InputError

Source = Literal["stored", "stem", "student"]


@dataclass(frozen=True, kw_only=True, eq=False)
class LayerAttention:
    """Attention of one layer.

    Attributes:
        layer: number of the decoder layer.
        source: `stored` in the store, computed from the teacher's `stem`, or of a `student`.
        values_HQP: float32 [H, Q, P]; a row sums to the attention that all vision tokens get together.
    """

    layer: int
    source: Source
    values_HQP: NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class LayerSource:
    """A layer of the teacher whose attention of text queries can be shown.

    Attributes:
        heads: H, which may be fewer than the teacher's where means of heads are stored.
        stored: the target that holds it; None: the teacher's stem gives it.
    """

    layer: int
    heads: int
    stored: StoredAttention | None


def layer_sources(manifest: Manifest) -> dict[int, LayerSource]:
    """The teacher's layers with attention of text queries to vision tokens, by number, rising.

    A layer that is stored is not computed, even if the stem gives it too.
    """
    stem = {}
    if manifest.codecs.attention == STEM:
        layer = manifest.shapes.attention_layer
        stem[layer] = LayerSource(layer=layer, heads=manifest.shapes.num_heads, stored=None)
    for target in attention_targets(manifest.more).values():
        if target.source == STEM:
            assert target.heads is not None
            stem |= {number: LayerSource(layer=number, heads=target.heads, stored=None) for number in target.layers}
    stored = {
        number: LayerSource(layer=number, heads=at.heads, stored=at)
        for at in stored_attention(manifest)
        if at.pairs == "tqv"
        for number in at.layers
    }
    return dict(sorted((stem | stored).items()))


def chosen_layer(manifest: Manifest, layer: int | None) -> LayerSource:
    """One of `layer_sources`.

    Args:
        layer: number of a decoder layer; None for the first.

    Raises:
        InputError: no such layer, or the store gives no text-query-vision attention.
    """
    found = layer_sources(manifest)
    if not found:
        what, step = _why_none(manifest)
        raise InputError(f"the store has {what}, not that of text queries to vision tokens (tqv); {step}")
    layer = next(iter(found)) if layer is None else layer
    if layer not in found:
        listed = ", ".join(map(str, found))
        raise InputError(f"--layer is {layer}, the store has tqv attention of layers {listed}; choose one of them")
    return found[layer]


def stored_layer(record: Record, source: LayerSource) -> LayerAttention:
    """The stored attention of a record with an image, decoded."""
    assert source.stored is not None
    values = next(values for number, values in source.stored.by_layer(record) if number == source.layer)
    return LayerAttention(layer=source.layer, source="stored", values_HQP=values)


def _why_none(manifest: Manifest) -> tuple[str, str]:
    """What a store without text-query-vision attention has, and the next step."""
    if "vqv" in attention_targets(manifest.stored_more):
        return "vqv attention", "dump it with store.attention.pairs tqv or all"
    if manifest.codecs.attention not in NOT_STORED:
        return f"{manifest.codecs.attention_pairs} attention", "dump it with store.attention_pairs tqv"
    return "no attention", "dump it with store.attention float16 or sqrt_u8"
