"""The descriptions of a shard for zarr readers; the one module that imports zarr."""

import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import zarr
from zarr import config
from zarr.codecs import BytesCodec, Crc32cCodec, ShardingCodec
from zarr.storage import MemoryStore

from alignkd.storage.layouts.zarr.chunk_file import CHECKSUMS, METADATA, TARGETS
from alignkd.storage.schema.columns.shard import Column
from alignkd.storage.schema.commit_record import ArrayLayout, Shape


def write_metadata(
    folder: Path,
    columns: Sequence[Column],
    arrays: Mapping[str, ArrayLayout],
    checksums: Mapping[str, bytearray],
    described: Mapping[str, Mapping[str, Any]],
    targets: Sequence[Mapping[str, Any]] = (),
) -> None:
    """Write `zarr.json` of the group and of every array into the folders of the data files.

    Args:
        checksums: crc32c of each array's chunks in file order and of its index, 4 bytes each.
        described: array name -> how to decode its numbers to values, an attribute of the array.
        targets: name and parts of each target, an attribute of the group.
    """
    attributes: dict[str, Any] = {CHECKSUMS: {name: data.hex() for name, data in checksums.items()}}
    attributes |= {TARGETS: list(targets)} if targets else {}
    zarr.create_group(folder, zarr_format=3, attributes=attributes)
    for column in columns:
        document = json.loads(
            _description(column, arrays[column.name].chunk, json.dumps(_attributes(column, described)))
        )
        document["shape"] = list(arrays[column.name].shape)
        document["chunk_grid"]["configuration"]["chunk_shape"] = list(_file_shape(arrays[column.name]))
        (folder / column.name / METADATA).write_text(
            json.dumps(document, indent=config.get("json_indent")), encoding="utf-8"
        )


@lru_cache(256)
def _description(column: Column, chunk: Shape, attributes: str) -> str:
    """The `zarr.json` that zarr writes for an array of one chunk; those of real arrays differ from it in shape."""
    written: dict[str, Any] = {}
    zarr.create_array(
        MemoryStore(written),
        shape=chunk,
        dtype=column.dtype,
        chunks=chunk,
        serializer=ShardingCodec(
            chunk_shape=chunk,
            codecs=[BytesCodec(), Crc32cCodec()],
            index_codecs=[BytesCodec(), Crc32cCodec()],
        ),
        filters=None,
        compressors=None,
        fill_value=column.fill_value,
        chunk_key_encoding={"name": "default", "separator": "."},
        attributes=json.loads(attributes),
    )
    return str(written[METADATA].to_bytes(), "utf-8")


def _attributes(column: Column, described: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    attributes: dict[str, Any] = {"labels": list(column.labels)} if column.labels else {}
    return attributes | ({"target": dict(described[column.name])} if column.name in described else {})


def _file_shape(layout: ArrayLayout) -> tuple[int, ...]:
    """Shape of the array rounded up to whole inner chunks, at least one: the array is in one file."""
    return tuple(max(1, -(-size // chunk)) * chunk for size, chunk in zip(layout.shape, layout.chunk, strict=True))
