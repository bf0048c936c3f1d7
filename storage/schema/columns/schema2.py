"""The arrays of a shard of schema 2, which is read and not written.

Rows of vision embeddings are whole images `[P, Dt]`, rows of selected tokens those of a record `[K, Dt]`.
"""

import numpy as np

from alignkd.storage.codecs.settings import NOT_STORED
from alignkd.storage.schema.columns.column import (
    ATTENTION_COLUMNS,
    COLUMN_BLOCK,
    IMAGE_BYTES,
    Column,
    float_columns,
    table_columns,
)
from alignkd.storage.schema.columns.logits import logit_columns
from alignkd.storage.schema.manifest import Manifest

GROUPS = ("text", "id", "token", "vision", "query", "supervised", "entry", "attention", "top", "image", "image_bytes")
RECORD_FIELDS = ("dataset_index", "image_row", "attention_columns", "image_record")


def columns_of_schema2(manifest: Manifest) -> tuple[Column, ...]:
    """Every array of a shard."""
    shapes, codecs, P = manifest.shapes, manifest.codecs, manifest.shapes.vision_tokens
    assert P is not None
    columns = table_columns(GROUPS, RECORD_FIELDS)
    if manifest.inputs == "embed":
        columns.append(Column(IMAGE_BYTES, "image_bytes", np.dtype("u1")))
    variable = codecs.attention_pairs == "tqt"
    row_shape = (shapes.num_heads, COLUMN_BLOCK if variable else P)
    columns += float_columns(
        "attention", "attention", codecs.attention, row_shape, ATTENTION_COLUMNS if variable else ""
    )
    K, Dt = shapes.vision_top_tokens, shapes.hidden_size
    columns += _squeezed(float_columns("vision_top_embeddings", "top", codecs.vision_top, (K, Dt)))
    if codecs.vision_top not in NOT_STORED:
        columns.append(Column("vision_top_index", "top", np.dtype("<u2"), (K,), squeezed=True))
    columns += _squeezed(float_columns("vision_embeddings", "image", codecs.vision_all, (P, Dt)))
    return (*columns, *logit_columns(manifest))


def _squeezed(columns: list[Column]) -> list[Column]:
    return [Column(c.name, c.group, c.dtype, c.row_shape, squeezed=True) for c in columns]
