"""Figures of a store: bytes by column, counts, reasons of unusable samples; from tables, without reading targets."""

import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from alignkd.storage.layouts.rows import RecordCodec
from alignkd.storage.layouts.tables import ShardTables
from alignkd.storage.read.shard import OpenShard
from alignkd.storage.read.store import StoreReader
from alignkd.storage.schema.columns.shard import NO_ROW, Column, columns_of, logits_codec_of
from alignkd.storage.schema.manifest import Manifest

# parts of a reason that differ between samples: quoted text, paths, numbers
_VARYING = re.compile(r"'[^']*'|\"[^\"]*\"|\S*/\S*|\d+(?:\.\d+)?")


@dataclass(frozen=True, kw_only=True)
class ColumnBytes:
    """One stored column: `num_bytes` of payload over all shards, without padding, headers and indexes."""

    column: str
    codec: str
    dtype: str
    num_bytes: int


@dataclass(frozen=True, kw_only=True)
class StoreStats:
    """Sums over all committed shards.

    Attributes:
        bytes: bytes of all files of shards; of these `overhead_bytes` are padding, headers, checksums and indexes.
        columns: stored columns, largest first.
        records_with_image, distinct_images: sums over shards: an image is stored once per shard.
        dedup_ratio: number of images in records per stored image.
        entries_per_position: kept entries (or distinct draws) per supervised position; None for other logits.
        quarantine_reasons: (reason, count) without names and numbers, most frequent first.
    """

    shards: int
    records: int
    tokens: int
    queries: int
    supervised: int
    records_with_image: int
    distinct_images: int
    dedup_ratio: float | None
    entries_per_position: float | None
    bytes: int
    overhead_bytes: int
    columns: list[ColumnBytes]
    quarantined: int
    quarantine_reasons: list[tuple[str, int]]


def store_stats(reader: StoreReader, progress: Callable[[int], object] = lambda shards: None) -> StoreStats:
    """Read the tables of every committed shard.

    Args:
        progress: called with the number of shards done since the last call.

    Raises:
        CorruptStoreError: a table is damaged.
    """
    manifest, codec = reader.manifest, RecordCodec(reader.manifest)
    columns = columns_of(manifest)
    held = dict.fromkeys((column.name for column in columns), 0)
    totals: Counter[str] = Counter()
    for commit in reader.commits:
        tables = OpenShard(reader.files, manifest, codec, commit).tables
        for column in columns:
            held[column.name] += payload_bytes(tables, column)
        totals += Counter(
            tokens=commit.totals.tokens,
            queries=commit.totals.queries,
            supervised=commit.totals.supervised,
            images=commit.totals.images,
            bytes=commit.totals.bytes,
            entries=tables.rows_of("entry"),
            with_image=int(np.count_nonzero(tables.field("image_row") != NO_ROW)),
            shown=_images_shown(tables, manifest),
        )
        progress(1)
    sizes = [
        ColumnBytes(
            column=column.name, codec=codec_of(manifest, column), dtype=column.dtype.str, num_bytes=held[column.name]
        )
        for column in columns
    ]
    kept = manifest.codecs.logits.kind in ("topk", "nucleus", "sampled") and totals["supervised"] > 0
    return StoreStats(
        shards=len(reader.commits),
        records=len(reader),
        tokens=totals["tokens"],
        queries=totals["queries"],
        supervised=totals["supervised"],
        records_with_image=totals["with_image"],
        distinct_images=totals["images"],
        dedup_ratio=totals["shown"] / totals["images"] if totals["images"] else None,
        entries_per_position=totals["entries"] / totals["supervised"] if kept else None,
        bytes=totals["bytes"],
        overhead_bytes=totals["bytes"] - sum(held.values()),
        columns=sorted(sizes, key=lambda size: -size.num_bytes),
        quarantined=len(reader.quarantined),
        quarantine_reasons=Counter(general_reason(entry.reason) for entry in reader.quarantined).most_common(),
    )


def _images_shown(tables: ShardTables, manifest: Manifest) -> int:
    """Sum of the numbers of images of all records."""
    if manifest.schema_version == 2:
        return tables.rows_of("vision") // (manifest.shapes.vision_tokens or 1)
    return tables.rows_of("shown")


def payload_bytes(tables: ShardTables, column: Column) -> int:
    """Bytes of a column's values in one shard."""
    if not column.variable_width:
        return tables.rows_of(column.group) * column.row_bytes
    widths = np.maximum(tables.field(column.width_field), 0)
    rows = np.diff(tables.ends(column.group))
    return int((rows * widths).sum()) * int(np.prod(column.row_shape[:-1])) * column.dtype.itemsize


def codec_of(manifest: Manifest, column: Column) -> str:
    """The codec of a column, as the manifest names it; empty for a column that is stored without a codec."""
    codecs = manifest.codecs
    logits = logits_codec_of(manifest)
    if logits is not None and column.name in {array[0] for array in logits.arrays()}:
        return " ".join(filter(None, (codecs.logits.kind, codecs.logits.dtype)))
    for target in manifest.more:
        if column.name == target.name or column.name.startswith(f"{target.name}_"):
            return target.codec if isinstance(target.codec, str) else str(getattr(target.codec, "kind", ""))
    if column.name.startswith("vision_top"):
        return codecs.vision_top
    if column.name.startswith("vision_embeddings"):
        return codecs.vision_all
    return codecs.attention if column.group == "attention" else ""


def general_reason(reason: str) -> str:
    """A reason without the parts of one sample: `'a.jpg' has 3 bytes` becomes `... has N bytes`."""
    return _VARYING.sub(lambda found: "N" if found[0][0].isdigit() and "/" not in found[0] else "...", reason)
