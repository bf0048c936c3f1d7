"""How sharp and how informative rows of attention are: the figures by which layers are chosen.

A row is the attention of one query and one head to the vision tokens of one image. Its distribution is the row divided
by its sum, the mass. Two passes over the same samples bound the memory: the first gives sums and the mean map of every
head, the second compares each row with that map.

Shapes: R queries, H heads, C vision tokens of an image, G 1 for text queries and C for vision queries.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from alignkd.storage.schema.targets.attention import LayerPairs

Floats = NDArray[np.float64]
# the blocks [R, H, C] of a sample, one for each image, of several layers in ascending order
SampleLayers = Iterable[tuple[int, Sequence[NDArray[Any]]]]
# KL divergence in nats; a query is informative if the row of any of its heads exceeds it
INFORMATIVE_NATS = 0.5


def image_blocks(attention_HRC: NDArray[Any], tokens_of_image: Sequence[int], pairs: LayerPairs) -> list[NDArray[Any]]:
    """The rows of each image.

    Args:
        attention_HRC: attention to the vision tokens of all images, side by side.
        tokens_of_image: vision tokens of each image.
        pairs: rows of `tqv` are kept for every image, rows of `vqv` for the image of their query only.

    Returns:
        [R, H, C] of each image.
    """
    rows_RHC, ends = attention_HRC.swapaxes(0, 1), np.cumsum(tokens_of_image).tolist()
    images = [slice(end - count, end) for end, count in zip(ends, tokens_of_image, strict=True)]
    return [rows_RHC[image if pairs == "vqv" else slice(None), :, image] for image in images]


def distributions(attention: NDArray[Any]) -> tuple[Floats, Floats]:
    """Rows divided by their mass, float64 [..., C], and the mass, float64 [...]; a row without mass stays 0."""
    values = attention.astype(np.float64)
    mass = values.sum(-1)
    return values / np.where(mass > 0, mass, 1.0)[..., None], mass


def entropy(probs: Floats) -> Floats:
    """Entropy in nats of distributions [..., C]."""
    found: Floats = -(probs * np.log(np.where(probs > 0, probs, 1.0))).sum(-1)
    return found


def sharpness(probs: Floats) -> Floats:
    """1 - H / ln C of distributions [..., C]: 0 if even, 1 for a single token; 0 for a row without mass or C = 1."""
    columns = probs.shape[-1]
    if columns < 2:
        return np.zeros(probs.shape[:-1])
    return np.where(probs.any(-1), 1 - entropy(probs) / np.log(columns), 0.0)


def surprise(probs_RHC: Floats, mean_GHC: Floats) -> Floats:
    """KL divergence in nats of each distribution from its head's mean map, float64 [R, H].

    Args:
        probs_RHC: distributions; a row without mass has surprise 0.
        mean_GHC: mean maps, positive wherever a row is.
    """
    is_there = probs_RHC > 0
    ratio = np.where(is_there, probs_RHC, 1.0) / np.where(is_there, mean_GHC, 1.0)
    found: Floats = (probs_RHC * np.log(ratio)).sum(-1)
    return found


def cosine(one: NDArray[Any], other: NDArray[Any]) -> float:
    """Cosine of two arrays of one shape, flattened; 0 if one of them is 0."""
    norms = float(np.linalg.norm(one) * np.linalg.norm(other))
    return float((one * other).sum()) / norms if norms else 0.0


Sums = TypeVar("Sums", "RowSums", "SurpriseSums")


@dataclass(frozen=True, kw_only=True, eq=False)
class _Summed:
    def __add__(self, other: Self) -> Self:
        return type(self)(**{item.name: getattr(self, item.name) + getattr(other, item.name) for item in fields(self)})


@dataclass(frozen=True, kw_only=True, eq=False)
class RowSums(_Summed):
    """Sums over the queries of one layer.

    Attributes:
        queries: number of queries, each counted once per image.
        mass_H, entropy_H, sharpness_H: sums by head.
        map_GHC: sum of the distributions; 0 where images have no common grid.
        similarity: sum over images of the cosine of the head means of this layer and the one before.
        compared: number of images with a layer before.
    """

    queries: int
    mass_H: Floats
    entropy_H: Floats
    sharpness_H: Floats
    map_GHC: Floats
    similarity: float
    compared: int

    @property
    def mean_map_GHC(self) -> Floats:
        """The mean distribution of every head."""
        return distributions(self.map_GHC)[0]


@dataclass(frozen=True, kw_only=True, eq=False)
class SurpriseSums(_Summed):
    """Sums over the queries of one layer against its mean maps.

    Attributes:
        surprise_H: sum of the surprise by head.
        above_H: number of rows whose surprise exceeds `INFORMATIVE_NATS`, by head.
        informative: number of queries for which it does in any head.
    """

    surprise_H: Floats
    above_H: NDArray[np.int64]
    informative: int


def row_sums(layers: SampleLayers, pairs: LayerPairs, *, has_grid: bool) -> dict[int, RowSums]:
    """The sums of the first pass for one sample, by layer.

    Args:
        has_grid: whether all images have the same vision tokens, so that there is a mean map.
    """
    found: dict[int, RowSums] = {}
    before: list[NDArray[Any]] = []
    for layer, blocks in layers:
        means = [block.mean(1, dtype=np.float64) for block in blocks]
        parts = [_sums_of(block, pairs, has_grid=has_grid) for block in blocks]
        compared = [cosine(one, other) for one, other in zip(before, means, strict=True)] if before else []
        total = added(parts)
        found[layer] = RowSums(**{**vars(total), "similarity": sum(compared), "compared": len(compared)})
        before = means
    return found


def surprise_sums(layers: SampleLayers, mean_maps: Mapping[int, Floats]) -> dict[int, SurpriseSums]:
    """The sums of the second pass for one sample, by layer; `mean_maps` are those of the first pass."""
    return {layer: added([_surprise_of(block, mean_maps[layer]) for block in blocks]) for layer, blocks in layers}


def added(parts: Sequence[Sums]) -> Sums:
    """The sum of at least one part."""
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    return total


def _sums_of(block_RHC: NDArray[Any], pairs: LayerPairs, *, has_grid: bool) -> RowSums:
    probs_RHC, mass_RH = distributions(block_RHC)
    map_GHC = np.zeros((1, 1, 1))
    if has_grid:
        map_GHC = probs_RHC if pairs == "vqv" else probs_RHC.sum(0, keepdims=True)
    return RowSums(
        queries=len(block_RHC),
        mass_H=mass_RH.sum(0),
        entropy_H=entropy(probs_RHC).sum(0),
        sharpness_H=sharpness(probs_RHC).sum(0),
        map_GHC=map_GHC,
        similarity=0.0,
        compared=0,
    )


def _surprise_of(block_RHC: NDArray[Any], mean_GHC: Floats) -> SurpriseSums:
    surprise_RH = surprise(distributions(block_RHC)[0], mean_GHC)
    is_above_RH = surprise_RH > INFORMATIVE_NATS
    return SurpriseSums(
        surprise_H=surprise_RH.sum(0),
        above_H=is_above_RH.sum(0, dtype=np.int64),
        informative=int(np.count_nonzero(is_above_RH.any(1))),
    )
