"""The descriptions of a shard for zarr readers; the one module that imports zarr."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import zarr
from zarr.codecs import BytesCodec, Crc32cCodec, ShardingCodec

from storage.columns import Column
from storage.sharding_layout import ArrayLayout


def write_metadata(folder: Path, columns: Sequence[Column], arrays: Mapping[str, ArrayLayout]) -> None:
    """Write `zarr.json` of the group and of every array beside the data files that are already there."""
    group = zarr.create_group(folder, zarr_format=3)
    for column in columns:
        layout = arrays[column.name]
        group.create_array(
            column.name,
            shape=layout.shape,
            dtype=column.dtype,
            chunks=_file_shape(layout),
            serializer=ShardingCodec(
                chunk_shape=layout.chunk,
                codecs=[BytesCodec(), Crc32cCodec()],
                index_codecs=[BytesCodec(), Crc32cCodec()],
            ),
            filters=None,
            compressors=None,
            fill_value=0,
            chunk_key_encoding={"name": "default", "separator": "."},
            attributes={"labels": list(column.labels)} if column.labels else None,
        )


def _file_shape(layout: ArrayLayout) -> tuple[int, ...]:
    """The array rounded up to whole inner chunks: all of it lies in one file, at least one chunk."""
    return tuple(max(1, -(-size // chunk)) * chunk for size, chunk in zip(layout.shape, layout.chunk, strict=True))
