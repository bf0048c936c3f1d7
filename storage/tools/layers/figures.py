"""Figures of each layer's attention from the sums of two passes over the same samples."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from alignkd.storage.schema.targets.attention import LayerPairs
from alignkd.storage.tools.layers.rows import (
    Floats,
    RowSums,
    SampleLayers,
    Sums,
    SurpriseSums,
    row_sums,
    surprise_sums,
)


class Reducing(Protocol):
    """Calls a function with the layers of each sample, in any order; every call goes over the same samples."""

    def __call__(self, reduce: Callable[[SampleLayers], dict[int, Sums]]) -> Iterable[dict[int, Sums]]: ...


@dataclass(frozen=True, kw_only=True)
class LayerFigures:
    """One layer.

    Attributes:
        layer: number in the decoder, from 0.
        queries: number of queries, each counted once per image.
        heads: number of heads.
        vision_mass: mean share of a row that falls on the image's vision tokens.
        entropy: mean entropy of the distribution over vision tokens, in nats.
        sharpness: mean of 1 - entropy / ln(vision tokens).
        surprise: mean KL divergence from the head's mean map, in nats; None where images have no common grid.
        informative: share of the queries whose surprise exceeds 0.5 nats in any head; None as `surprise`.
        best_head: head whose rows exceed it most often, without a grid the sharpest.
        similarity: mean cosine of the head means of this layer and of the one before it here; None for the first.
    """

    layer: int
    queries: int
    heads: int
    vision_mass: float
    entropy: float
    sharpness: float
    surprise: float | None
    informative: float | None
    best_head: int
    similarity: float | None


@dataclass(frozen=True, kw_only=True)
class LayerScan:
    """All layers of some samples.

    Attributes:
        layers: figures in the order of the layers; empty if no sample has attention to vision tokens.
        mean_maps: layer -> the mean map of each head, float64 [G, H, C]; empty where images have no common grid.
    """

    layers: tuple[LayerFigures, ...]
    mean_maps: Mapping[int, Floats]


def scan_layers(reduce: Reducing, pairs: LayerPairs, *, has_grid: bool) -> LayerScan:
    """Make the figures; without a common grid one pass is enough.

    Args:
        has_grid: whether all images have the same vision tokens.
    """
    first: dict[int, RowSums] = _totals(reduce(lambda layers: row_sums(layers, pairs, has_grid=has_grid)))
    if not has_grid:
        return LayerScan(layers=tuple(_figures(layer, sums, None) for layer, sums in first.items()), mean_maps={})
    maps = {layer: sums.mean_map_GHC for layer, sums in first.items()}
    second: dict[int, SurpriseSums] = _totals(reduce(lambda layers: surprise_sums(layers, maps)))
    return LayerScan(
        layers=tuple(_figures(layer, sums, second[layer]) for layer, sums in first.items()), mean_maps=maps
    )


def _totals(samples: Iterable[dict[int, Sums]]) -> dict[int, Sums]:
    totals: dict[int, Sums] = {}
    for sample in samples:
        for layer, sums in sample.items():
            totals[layer] = totals[layer] + sums if layer in totals else sums
    return dict(sorted(totals.items()))


def _figures(layer: int, sums: RowSums, against: SurpriseSums | None) -> LayerFigures:
    rows, heads = max(1, sums.queries), len(sums.mass_H)
    order_H = sums.sharpness_H
    if against is not None:  # where heads exceed the limit equally often, the larger mean decides
        order_H = against.above_H + against.surprise_H / (1 + against.surprise_H.sum())
    return LayerFigures(
        layer=layer,
        queries=sums.queries,
        heads=heads,
        vision_mass=float(sums.mass_H.sum()) / (rows * heads),
        entropy=float(sums.entropy_H.sum()) / (rows * heads),
        sharpness=float(sums.sharpness_H.sum()) / (rows * heads),
        surprise=None if against is None else float(against.surprise_H.sum()) / (rows * heads),
        informative=None if against is None else against.informative / rows,
        best_head=int(np.argmax(order_H)),
        similarity=sums.similarity / sums.compared if sums.compared else None,
    )
