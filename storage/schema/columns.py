"""Which arrays a shard consists of: a pure function of the manifest.

Arrays whose rows belong together (labels and input_ids, for example) form a group. One table per shard holds the first
and the last row of each record in each group.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from alignkd.storage.codecs import get_codec
from alignkd.storage.codecs.base import part_column
from alignkd.storage.codecs.settings import FROM_ALL, NOT_STORED
from alignkd.storage.logits.registry import LogitsArrays, LogitSizes, logits_codec
from alignkd.storage.schema.manifest import Manifest

# "record" has one row per record; the others are ragged
GROUPS = ("text", "id", "token", "vision", "query", "supervised", "entry", "attention", "top", "image", "image_bytes")
OFFSETS = "offsets"
RECORDS = "records"
KEYS = "keys"
# image_row: row of the record's (first) image in the group "image"; image_record: number in the shard of the record
# that stores it; both -1 without an image. A record of k images has k rows there, and k times the rows of attention.
RECORD_FIELDS = ("dataset_index", "image_row", "attention_columns", "image_record")
IMAGE_BYTES = "image_bytes"
# in `records`: the record has no such row, or no attention
NO_ROW = -1

# An inner chunk is the unit of reading and of checksumming. Large chunks: more bytes are read that a record does not
# need. Small chunks: each costs about 2 us of Python. Measured with 32 heads and 144 vision tokens: 32 to 256 KiB are
# within 20 % of each other. Small chunks are better for fields of few bytes per record.
CHUNK_BYTES = 1 << 17
SMALL_CHUNK_BYTES = 1 << 13
SMALL_ROW_BYTES = 256
# attention of variable width is chunked along the columns too
COLUMN_BLOCK = 64


@dataclass(frozen=True)
class Column:
    """One stored array: rows of `row_shape`; with `variable_width` the last dimension differs between records.

    Attributes:
        group: name of the group; its arrays have the same number of rows.
        labels: names of the entries of a row, for the shard's tables.
    """

    name: str
    group: str
    dtype: np.dtype[Any]
    row_shape: tuple[int, ...] = ()
    variable_width: bool = False
    labels: tuple[str, ...] = ()

    @property
    def row_bytes(self) -> int:
        return int(np.prod(self.row_shape, dtype=np.int64)) * self.dtype.itemsize

    @property
    def chunk_shape(self) -> tuple[int, ...]:
        """Shape of an inner chunk, rows first; the last dimension is a block of columns if the width varies."""
        one_row = self.group in ("record", "top", "image")
        target = SMALL_CHUNK_BYTES if one_row or self.row_bytes <= SMALL_ROW_BYTES else CHUNK_BYTES
        rows = max(1, target // max(1, self.row_bytes))
        return (1 << (rows.bit_length() - 1), *self.row_shape)


def columns_of(manifest: Manifest) -> tuple[Column, ...]:
    """Every array of a shard of this store."""
    i8, i4, u1 = np.dtype("<i8"), np.dtype("<i4"), np.dtype("u1")
    columns = [
        Column(OFFSETS, "record", i8, (len(GROUPS),), labels=GROUPS),
        Column(RECORDS, "record", i8, (len(RECORD_FIELDS),), labels=RECORD_FIELDS),
        Column(KEYS, "record", u1, (32,)),
        Column("text", "text", u1),
        Column("id", "id", u1),
        Column("input_ids", "token", i4),
        Column("labels", "token", i4),
        Column("vision_positions", "vision", i4),
        Column("tqv_query_positions", "query", i4),
        Column("supervised_positions", "supervised", i4),
    ]
    if manifest.inputs == "embed":
        columns.append(Column(IMAGE_BYTES, "image_bytes", u1))
    return (*columns, *_attention_columns(manifest), *_vision_columns(manifest), *_logit_columns(manifest))


def logits_codec_of(manifest: Manifest) -> LogitsArrays | None:
    """The codec of the store's logits; None if it keeps no logits."""
    shapes = manifest.shapes
    sizes = LogitSizes(vocab_size=shapes.vocab_size, hidden_size=shapes.hidden_size)
    return logits_codec(manifest.codecs.logits, sizes)


def describe_targets(manifest: Manifest) -> dict[str, dict[str, Any]]:
    """Name of each stored target's main column -> how to decode the target, and its error bound; JSON-able.

    For readers without this package: in attributes of zarr arrays and in files of `alignkd shards export`. Tars name
    the codecs only, in their manifest.
    """
    codecs, logits = manifest.codecs, logits_codec_of(manifest)
    fields = {
        "attention": codecs.attention,
        "vision_top_embeddings": codecs.vision_top,
        "vision_embeddings": codecs.vision_all,
    }
    described = {
        field: get_codec(codec).describe() for field, codec in fields.items() if codec not in (FROM_ALL, *NOT_STORED)
    }
    return described if logits is None else described | {logits.arrays()[0][0]: logits.describe()}


def _attention_columns(manifest: Manifest) -> list[Column]:
    variable = manifest.codecs.attention_pairs == "tqt"
    width = COLUMN_BLOCK if variable else manifest.shapes.vision_tokens
    row_shape = (manifest.shapes.num_heads, width)
    return _float_columns("attention", "attention", manifest.codecs.attention, row_shape, variable)


def _vision_columns(manifest: Manifest) -> list[Column]:
    shapes, codecs = manifest.shapes, manifest.codecs
    K, P, Dt = shapes.vision_top_tokens, shapes.vision_tokens, shapes.hidden_size
    columns = _float_columns("vision_top_embeddings", "top", codecs.vision_top, (K, Dt))
    if codecs.vision_top not in NOT_STORED:
        columns.append(Column("vision_top_index", "top", np.dtype("<u2"), (K,)))
    return columns + _float_columns("vision_embeddings", "image", codecs.vision_all, (P, Dt))


def _logit_columns(manifest: Manifest) -> list[Column]:
    codec = logits_codec_of(manifest)
    return [] if codec is None else [Column(*array) for array in codec.arrays()]


def _float_columns(
    field: str, group: str, codec: str, row_shape: tuple[int, ...], variable_width: bool = False
) -> list[Column]:
    if codec in (FROM_ALL, *NOT_STORED):
        return []
    # only the values have the axis that varies, not the scales
    return [
        Column(part_column(field, part), group, dtype, shape, variable_width and not part)
        for part, (dtype, shape) in get_codec(codec).parts(row_shape).items()
    ]
