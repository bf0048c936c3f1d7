"""The stored attention to vision tokens by layer: the target `attention`, and further targets of several layers.

Shapes: R queries, H stored heads of a layer, n layers times H, C vision tokens of all images.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from alignkd.storage.codecs.settings import NOT_STORED
from alignkd.storage.read.store import StoreReader
from alignkd.storage.record.record import EncodedArray, Record, Target, as_float32, heads_first
from alignkd.storage.schema.manifest import Manifest
from alignkd.storage.schema.targets.attention import LayerPairs, attention_targets
from alignkd.storage.schema.targets.named import ATTENTION
from alignkd.storage.tools.layers.figures import LayerFigures, scan_layers
from alignkd.storage.tools.layers.rows import SampleLayers, Sums, image_blocks


@dataclass(frozen=True, kw_only=True)
class StoredAttention:
    """A target with attention from text or vision queries to vision tokens.

    Attributes:
        name: name of the target.
        layers: numbers of the teacher's layers, ascending.
        heads: stored heads of each layer.
    """

    name: str
    pairs: LayerPairs
    layers: tuple[int, ...]
    heads: int

    def of(self, record: Record) -> Target | None:
        """The record's values in their stored form; None without an image."""
        if self.name == ATTENTION:
            return record.attention
        values = record.more.get(self.name)
        return values if isinstance(values, np.ndarray | EncodedArray) else None

    def by_layer(self, record: Record) -> Iterator[tuple[int, NDArray[np.float32]]]:
        """Each layer of a record with an image, decoded: float32 [H, R, C]."""
        values = self.of(record)
        assert values is not None
        if self.name == ATTENTION:
            yield self.layers[0], heads_first(as_float32(values))
            return
        rows_RnC = as_float32(values)
        for number, layer in enumerate(self.layers):
            yield layer, rows_RnC[:, number * self.heads : (number + 1) * self.heads].swapaxes(0, 1)

    def blocks(self, record: Record) -> SampleLayers:
        """Each layer's rows by image."""
        return ((layer, image_blocks(at, record.tokens_of_image, self.pairs)) for layer, at in self.by_layer(record))


@dataclass(frozen=True, kw_only=True)
class StoredLayers:
    """Figures of a target.

    Attributes:
        target, pairs: name of the target and its pairs.
        records: records with images that were read.
        layers: figures of each layer.
        bytes_per_sample: mean bytes of one layer of a record with images.
    """

    target: str
    pairs: LayerPairs
    records: int
    layers: tuple[LayerFigures, ...]
    bytes_per_sample: float


def stored_attention(manifest: Manifest) -> list[StoredAttention]:
    """The targets of a store that hold attention to vision tokens; those of the stem are not stored."""
    codecs, shapes = manifest.codecs, manifest.shapes
    found = []
    if codecs.attention not in NOT_STORED and codecs.attention_pairs != "tqt":
        layers = (shapes.attention_layer,)
        own = StoredAttention(name=ATTENTION, pairs=codecs.attention_pairs, layers=layers, heads=shapes.num_heads)
        found.append(own)
    for pairs, target in attention_targets(manifest.stored_more).items():
        assert target.heads is not None
        found.append(StoredAttention(name=target.name, pairs=pairs, layers=target.layers, heads=target.heads))
    return found


def stored_layers(
    reader: StoreReader, positions: Sequence[int], progress: Callable[[int], object] = lambda records: None
) -> list[StoredLayers]:
    """The figures of some records, target by target; every record is read again for each pass.

    Args:
        progress: called with the number of targets done since the last call.

    Raises:
        CorruptStoreError: a record is damaged.
    """
    targets = stored_attention(reader.manifest)
    has_grid = bool(targets) and _has_grid(reader, positions)
    found = []
    for target in targets:
        found.append(_figures(reader, positions, target, has_grid=has_grid))
        progress(1)
    return found


def _has_grid(reader: StoreReader, positions: Sequence[int]) -> bool:
    """Whether all images of some records have the same number of vision tokens."""
    if reader.manifest.shapes.vision_tokens is not None:
        return True
    return len({count for position in positions for count in reader[position].tokens_of_image}) == 1


def _figures(
    reader: StoreReader,
    positions: Sequence[int],
    target: StoredAttention,
    *,
    has_grid: bool,
) -> StoredLayers:
    sizes: dict[int, int] = {}

    def reading(reduce: Callable[[SampleLayers], dict[int, Sums]]) -> Iterable[dict[int, Sums]]:
        for position in positions:
            record = reader[position]
            if (values := target.of(record)) is not None:
                sizes[position] = values.nbytes
                yield reduce(target.blocks(record))

    scan = scan_layers(reading, target.pairs, has_grid=has_grid)
    return StoredLayers(
        target=target.name,
        pairs=target.pairs,
        records=len(sizes),
        layers=scan.layers,
        bytes_per_sample=sum(sizes.values()) / max(1, len(sizes)) / len(target.layers),
    )
