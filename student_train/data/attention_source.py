"""Which attention of the teacher a store has, and which of it the batches of a run carry."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from alignkd.storage.codecs.settings import NONE, STEM
from alignkd.storage.schema.manifest import Manifest
from alignkd.storage.schema.targets.attention import attention_targets
from alignkd.vlm.inputs.position_map import AttentionPairs


@dataclass(frozen=True, kw_only=True)
class StoredAttention:
    """The attention that a store has, or that the stem gives in its place.

    Attributes:
        pairs: its queries and keys; the rows of several are joined in this order.
        names: the further target of each of `pairs`; empty: `Record.attention`, the first layer's, by image.
        layers: numbers of the teacher's decoder layers, rising.
        heads: heads of each layer.
        codec: its codec, `stem` or `none`.
    """

    pairs: tuple[AttentionPairs, ...]
    names: tuple[str, ...]
    layers: tuple[int, ...]
    heads: int
    codec: str

    @property
    def by_image(self) -> bool:
        """Whether a sample has a block for each of its images; otherwise one with the columns of all images."""
        return not self.names

    def chosen(self, layers: tuple[int, ...]) -> "ChosenAttention":
        """The part of it that a run needs."""
        if self.by_image and layers == self.layers:
            return ChosenAttention(pairs=self.pairs)
        entries = [
            place * self.heads + head
            for place, layer in enumerate(self.layers)
            if layer in layers
            for head in range(self.heads)
        ]
        return ChosenAttention(
            pairs=self.pairs,
            names=self.names,
            layers=layers,
            entries=None if self.layers == layers else tuple(entries),
        )


@dataclass(frozen=True, kw_only=True)
class ChosenAttention:
    """The attention that batches carry.

    Attributes:
        pairs, names: as in `StoredAttention`.
        layers: the teacher's layers that the losses compare with, rising; None: the first layer's attention.
        entries: their places in the stored rows `[layers * heads, C]`; None: all.
    """

    pairs: tuple[AttentionPairs, ...] = ("tqv",)
    names: tuple[str, ...] = ()
    layers: tuple[int, ...] | None = None
    entries: tuple[int, ...] | None = None

    @property
    def by_image(self) -> bool:
        """As `StoredAttention.by_image`."""
        return not self.names

    def of_entries(self, values: NDArray[np.generic]) -> NDArray[np.generic]:
        """The needed entries of stored numbers or scales [R, layers * heads, ...]."""
        return values if self.entries is None else values[:, list(self.entries)]


def stored_attention(manifest: Manifest, *, of_layers: bool) -> StoredAttention:
    """The attention of a store that a run compares with; with codec `none` if the store has none.

    Args:
        of_layers: which one, if the store has the first layer's and that of chosen layers: the latter.
    """
    shapes, codecs = manifest.shapes, manifest.codecs
    chosen = attention_targets(manifest.more)
    if not chosen or (codecs.attention != NONE and not of_layers):
        return StoredAttention(
            pairs=(codecs.attention_pairs,),
            names=(),
            layers=(shapes.attention_layer,),
            heads=shapes.num_heads,
            codec=codecs.attention,
        )
    first = next(iter(chosen.values()))
    assert first.heads is not None
    return StoredAttention(
        pairs=tuple(chosen),
        names=tuple(target.name for target in chosen.values()),
        layers=first.layers,
        heads=first.heads,
        codec=STEM if first.source == "stem" else str(first.codec),
    )
