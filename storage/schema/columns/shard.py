"""Which arrays a shard consists of: a pure function of the manifest.

Arrays whose rows belong together (labels and input_ids, for example) form a group. One table per shard holds the first
and the last row of each record in each group.
"""

from dataclasses import replace
from typing import Any

import numpy as np

from alignkd.storage.codecs import get_codec
from alignkd.storage.codecs.base import part_column
from alignkd.storage.codecs.settings import FROM_ALL, NOT_STORED, LogitsCodec
from alignkd.storage.logits.registry import LogitsArrays
from alignkd.storage.schema.columns.column import (
    ATTENTION_COLUMNS,
    COLUMN_BLOCK,
    IMAGE_BYTES,
    KEYS,
    NO_ROW,
    OFFSETS,
    RECORDS,
    Column,
    float_columns,
    table_columns,
)
from alignkd.storage.schema.columns.logits import codec_of_logits, logit_columns, logits_codec_of
from alignkd.storage.schema.columns.schema2 import columns_of_schema2
from alignkd.storage.schema.manifest import Manifest
from alignkd.storage.schema.targets.affinity import AFFINITY
from alignkd.storage.schema.targets.attention import NAMES as ATTENTION_LAYERS
from alignkd.storage.schema.targets.named import NamedTarget
from alignkd.storage.schema.targets.sequence import SEQUENCE_TARGET

__all__ = [
    "ATTENTION_COLUMNS",
    "COLUMN_BLOCK",
    "GROUPS",
    "IMAGE_BYTES",
    "IMAGE_GROUPS",
    "IMAGE_TOKENS",
    "KEYS",
    "NO_ROW",
    "OFFSETS",
    "RECORDS",
    "RECORD_FIELDS",
    "Column",
    "columns_of",
    "describe_targets",
    "further_logits",
    "logits_codec_of",
    "part_name",
    "stored_targets",
    "width_field",
]

# "record" has one row per record; the others are ragged. A further target has a group of its own name, unless its rows
# are stored once for all records that show the same images.
GROUPS = (
    "text",
    "id",
    "token",
    "vision",
    "query",
    "supervised",
    "entry",
    "attention",
    "shown",
    "top",
    "top_scale",
    "image",
    "image_token",
    "image_bytes",
)
# groups whose rows are stored with one record and shared by all records of the shard that show the same images
IMAGE_GROUPS = ("image", "image_token", "image_bytes")
# image_row: row of the record's (first) image in the group "image"; image_record: number in the shard of the record
# that stores it; both -1 without an image. attention_columns: width of its attention, -1 if it has none. length: L.
# Every further target of varying width adds its own width.
RECORD_FIELDS = ("dataset_index", "image_row", "attention_columns", "image_record", "num_images", "length")
IMAGE_TOKENS = "image_tokens"


def columns_of(manifest: Manifest) -> tuple[Column, ...]:
    """Every array of a shard of this store."""
    if manifest.schema_version == 2:
        return columns_of_schema2(manifest)
    i4, more = np.dtype("<i4"), manifest.stored_more
    own_groups = [group for target in more for group in _groups_of(target)]
    widths = [width_field(target) for target in more if target.columns is not None]
    columns = [
        *table_columns((*GROUPS, *own_groups), (*RECORD_FIELDS, *widths)),
        Column(IMAGE_TOKENS, "shown", i4),
    ]
    if manifest.inputs == "embed":
        columns.append(Column(IMAGE_BYTES, "image_bytes", np.dtype("u1")))
    columns += [_with_image(column) for column in _attention_columns(manifest) + _vision_columns(manifest)]
    columns += logit_columns(manifest)
    for target in more:
        found = _columns_of_more(target, manifest)
        columns += map(_with_image, found) if target.needs_image else found
    return tuple(columns)


def _with_image(column: Column) -> Column:
    return replace(column, needs_image=True)


def further_logits(target: NamedTarget, manifest: Manifest) -> LogitsArrays:
    """The codec of a further target of kind `logits`; its columns have the target's name and `_` before theirs."""
    assert isinstance(target.codec, LogitsCodec)
    codec = codec_of_logits(target.codec, manifest)
    assert codec is not None
    return codec


def width_field(target: NamedTarget) -> str:
    """The field of `records` with the width of a further target."""
    return f"{target.name}_columns"


def describe_targets(manifest: Manifest) -> dict[str, dict[str, Any]]:
    """Name of each stored target's main column -> how to decode the target, and its error bound; JSON-able.

    `parts` names the column of each part: the numbers themselves are the part "". For readers without this package: in
    attributes of zarr arrays and in files of `alignkd shards export`. Tars name the codecs only, in their manifest.
    """
    codecs, logits = manifest.codecs, logits_codec_of(manifest)
    fields = {
        "attention": codecs.attention,
        "vision_top_embeddings": codecs.vision_top,
        "vision_embeddings": codecs.vision_all,
        **{target.name: target.codec for target in manifest.more if isinstance(target.codec, str)},
    }
    described = {
        field: {**get_codec(codec).describe(), "parts": _parts(field, codec)}
        for field, codec in fields.items()
        if codec not in (FROM_ALL, *NOT_STORED)
    }
    if logits is not None:
        described[logits.arrays()[0][0]] = {
            **logits.describe(),
            "parts": {array[0]: array[0] for array in logits.arrays()},
        }
    for target in manifest.more:
        if target.kind == "logits":
            codec = further_logits(target, manifest)
            parts = {array[0]: part_name(target, array[0]) for array in codec.arrays()}
            described[next(iter(parts.values()))] = {**codec.describe(), "parts": parts}
    return described


def stored_targets(manifest: Manifest) -> list[dict[str, Any]]:
    """Each stored target as the manifest has it, with how to decode it and the column of each part; JSON-able."""
    described = describe_targets(manifest)
    logits = logits_codec_of(manifest)
    columns = {"vision_top": "vision_top_embeddings", "vision_all": "vision_embeddings"}
    if logits is not None:
        columns["logits"] = logits.arrays()[0][0]
    found = []
    for target in manifest.targets:
        column = columns.get(target.name, target.name)
        if target.kind == "logits" and target.name not in columns:
            column = part_name(target, further_logits(target, manifest).arrays()[0][0])
        if column in described:
            found.append(target.model_dump(mode="json") | described[column])
        elif target.codec == FROM_ALL:
            found.append(target.model_dump(mode="json") | {"parts": {"index": "vision_top_index"}})
    return found


def part_name(target: NamedTarget, column: str) -> str:
    """The column of a further target of kind `logits` that is called `column` in the store's own logits."""
    return f"{target.name}_{column}"


def _parts(field: str, codec: str) -> dict[str, str]:
    return {part: part_column(field, part) for part in get_codec(codec).part_names}


def _attention_columns(manifest: Manifest) -> list[Column]:
    tokens = manifest.shapes.vision_tokens
    variable = manifest.codecs.attention_pairs == "tqt" or tokens is None
    width = COLUMN_BLOCK if variable or tokens is None else tokens
    row_shape = (manifest.shapes.num_heads, width)
    field = ATTENTION_COLUMNS if variable else ""
    return float_columns("attention", "attention", manifest.codecs.attention, row_shape, field)


def _vision_columns(manifest: Manifest) -> list[Column]:
    shapes, codecs = manifest.shapes, manifest.codecs
    K, Dt = shapes.vision_top_tokens, shapes.hidden_size
    columns = _token_columns("vision_top_embeddings", codecs.vision_top, Dt, ("top", "top_scale"), K)
    if codecs.vision_top not in NOT_STORED:
        columns.append(Column("vision_top_index", "top", np.dtype("<u2"), unit=K))
    unit = shapes.vision_tokens or 1
    return columns + _token_columns("vision_embeddings", codecs.vision_all, Dt, ("image_token", "image"), unit)


def _token_columns(field: str, codec: str, width: int, groups: tuple[str, str], unit: int) -> list[Column]:
    """Rows of one vision token [width]; parts that the tokens of an image share are rows of the second group."""
    if codec in (FROM_ALL, *NOT_STORED):
        return []
    found = get_codec(codec)
    columns = []
    for part, (dtype, _) in found.parts((1, width)).items():
        name = part_column(field, part)
        if part in found.shared_parts:
            shape = found.parts((1, width))[part][1]
            columns.append(Column(name, groups[1], dtype, shape, squeezed=groups[1] == "top_scale"))
        else:
            columns.append(Column(name, groups[0], dtype, found.parts((width,))[part][1], unit=unit))
    return columns


def _groups_of(target: NamedTarget) -> tuple[str, ...]:
    """The groups that a further target adds."""
    if target.stored_once:
        return ()
    return (target.name, part_name(target, "entry")) if target.kind == "logits" else (target.name,)


def _column_block(target: NamedTarget, manifest: Manifest) -> int:
    """Columns of a chunk: whole images where all have the same number of tokens, so that nothing is filled up."""
    tokens = manifest.shapes.vision_tokens
    of_images = target.name in (*ATTENTION_LAYERS.values(), AFFINITY)
    return tokens if of_images and tokens is not None else COLUMN_BLOCK


def _columns_of_more(target: NamedTarget, manifest: Manifest) -> list[Column]:
    own, entries = target.name, part_name(target, "entry")
    if target.kind == "logits":
        return [
            Column(part_name(target, name), entries if group == "entry" else own, dtype, shape)
            for name, group, dtype, shape in further_logits(target, manifest).arrays()
        ]
    assert isinstance(target.codec, str)
    lead = () if target.lead is None else (target.lead,)
    group = target.rows if target.stored_once else own
    if target.columns is not None:
        block = _column_block(target, manifest)
        return float_columns(own, group, target.codec, (*lead, block), width_field(target))
    columns = float_columns(own, group, target.codec, (*lead, *(() if target.width is None else (target.width,))))
    # one number for each record: a chunk of the usual size would be filled up in all but the largest shards
    return [replace(column, chunk_bytes=1 << 10) for column in columns] if target == SEQUENCE_TARGET else columns
