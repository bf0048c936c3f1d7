"""Which arrays a shard consists of: a pure function of the manifest.

Arrays whose rows belong together (labels and input_ids, say) form a group; one table per shard holds, for
every group, where each record's rows begin and end.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from storage.codecs import get_codec
from storage.codecs.base import part_column
from storage.codecs.truncated_logits import TruncatedLogitsCodec
from storage.manifest import Manifest

# "record" has one row per record; the others are ragged
GROUPS = ("text", "id", "token", "vision", "query", "supervised", "entry", "attention", "top", "image")
OFFSETS = "offsets"
RECORDS = "records"
KEYS = "keys"
RECORD_FIELDS = ("dataset_index", "image_row", "attention_columns")

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
    return (*columns, *_attention_columns(manifest), *_vision_columns(manifest), *_logit_columns(manifest))


def _attention_columns(manifest: Manifest) -> list[Column]:
    variable = manifest.codecs.attention_pairs == "tqt"
    width = COLUMN_BLOCK if variable else manifest.shapes.vision_tokens
    row_shape = (manifest.shapes.num_heads, width)
    return _float_columns("attention", "attention", manifest.codecs.attention, row_shape, variable)


def _vision_columns(manifest: Manifest) -> list[Column]:
    shapes, codecs = manifest.shapes, manifest.codecs
    K, P, Dt = shapes.vision_top_tokens, shapes.vision_tokens, shapes.hidden_size
    columns = _float_columns("vision_top_embeddings", "top", codecs.vision_top, (K, Dt))
    if columns:
        columns.append(Column("vision_top_index", "top", np.dtype("<u2"), (K,)))
    return columns + _float_columns("vision_embeddings", "image", codecs.vision_all, (P, Dt))


def _logit_columns(manifest: Manifest) -> list[Column]:
    kind, V = manifest.codecs.logits.kind, manifest.shapes.vocab_size
    if kind == "full":
        return _float_columns("logits", "supervised", manifest.codecs.logits.dtype, (V,))
    codec = truncated_codec(manifest)
    if codec is None:
        return []
    return [
        Column("entry_counts", "supervised", np.dtype("<u4")),
        Column("tail_logmass", "supervised", np.dtype("<f4")),
        Column("entry_ids", "entry", codec.id_dtype),
        Column("entry_logprobs", "entry", codec.logprob_dtype),
    ]


def truncated_codec(manifest: Manifest) -> TruncatedLogitsCodec | None:
    """The codec of truncated logits, None where the store keeps none."""
    logits = manifest.codecs.logits
    if logits.top_k is None:
        return None
    return TruncatedLogitsCodec(manifest.shapes.vocab_size, logits.top_k, logits.dtype)


def _float_columns(
    field: str, group: str, codec: str, row_shape: tuple[int, ...], variable_width: bool = False
) -> list[Column]:
    if codec == "none":
        return []
    return [
        Column(part_column(field, part), group, dtype, shape, variable_width)
        for part, (dtype, shape) in get_codec(codec).parts(row_shape).items()
    ]
