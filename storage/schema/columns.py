"""Which arrays a shard consists of: a pure function of the manifest.

Arrays whose rows belong together (labels and input_ids, say) form a group; one table per shard holds, for
every group, where each record's rows begin and end.
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
# that brought it; both -1 without image. A record of k images has k rows there, and k times its rows of attention.
RECORD_FIELDS = ("dataset_index", "image_row", "attention_columns", "image_record")
IMAGE_BYTES = "image_bytes"

# An inner chunk is the unit of reading and of checksumming: what a record does not need of its first and
# last chunk is read in vain, while each chunk costs about 2 us of Python. Measured with 32 heads and 144
# vision tokens: 32 to 256 KiB within 20 % of each other. Fields of few bytes per record want small chunks.
CHUNK_BYTES = 1 << 17
SMALL_CHUNK_BYTES = 1 << 13
SMALL_ROW_BYTES = 256
# rows of an attention that differs in width are chunked along the columns too
COLUMN_BLOCK = 64


@dataclass(frozen=True)
class Column:
    """One stored array: rows of `row_shape`; with `variable_width` the last dimension differs per record.

    Attributes:
        labels: names of the entries of a row, for tables whose entries mean different things.
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
        """Inner chunk, rows first; its last dimension is a block of columns if the width varies."""
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
    """The codec of the store's logits, None where it keeps none."""
    shapes = manifest.shapes
    sizes = LogitSizes(vocab_size=shapes.vocab_size, hidden_size=shapes.hidden_size)
    return logits_codec(manifest.codecs.logits, sizes)


def describe_targets(manifest: Manifest) -> dict[str, dict[str, Any]]:
    """For each stored target, by the name of its main column, how to decode it and with which error; JSON-able.

    For readers without this package: attributes of zarr arrays, headers of tar files.
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
    # of parts beside the values (scales) none has the axis that varies
    return [
        Column(part_column(field, part), group, dtype, shape, variable_width and not part)
        for part, (dtype, shape) in get_codec(codec).parts(row_shape).items()
    ]
