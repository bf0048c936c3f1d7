"""Predicts the size of a zarr shard: chunks of whole rows, the last one filled up, each with its checksum and place."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np

from alignkd.disk.temporary import temporary_folder
from alignkd.storage.layouts.prediction import PredictedShard, ShardRows
from alignkd.storage.layouts.zarr.chunk_file import CRC_BYTES, data_file, index_bytes
from alignkd.storage.schema.columns.shard import OFFSETS, Column, describe_targets, stored_targets
from alignkd.storage.schema.commit_record import ArrayLayout
from alignkd.storage.schema.manifest import Manifest

_CHECKSUM_DIGITS = 2 * CRC_BYTES


def predicted_shards(
    manifest: Manifest, columns: Sequence[Column], shards: Iterable[ShardRows], *, descriptions: bool
) -> Iterator[PredictedShard]:
    """The files of each shard.

    Args:
        descriptions: whether to count the `zarr.json` files. zarr writes those of the first shard; the others differ
            from them by the checksums of their chunks.
    """
    first: dict[str, int] | None = None
    chunks_of_first = 0
    for rows in shards:
        arrays = {column.name: _layout(column, rows) for column in columns}
        chunks = {column.name: _num_chunks(column, arrays[column.name], rows) for column in columns}
        sizes = {column.name: _data_bytes(column, arrays[column.name], chunks[column.name]) for column in columns}
        if descriptions and first is None:
            first, chunks_of_first = _descriptions(manifest, columns, arrays, chunks), sum(chunks.values())
        overhead = 0
        if first is not None:
            overhead = sum(first.values()) + _CHECKSUM_DIGITS * (sum(chunks.values()) - chunks_of_first)
        files = {**(first or {}), **{data_file(column): sizes[column.name] for column in columns}}
        yield PredictedShard(columns=sizes, overhead=overhead, files=files, arrays=arrays)


def _layout(column: Column, rows: ShardRows) -> ArrayLayout:
    num_rows = rows.total(column.group) + (column.name == OFFSETS)
    row_shape = column.row_shape
    if column.variable_width:
        row_shape = (*row_shape[:-1], int(rows.widths_of(column).max(initial=0)))
    return ArrayLayout((num_rows, *row_shape), column.chunk_shape)


def _data_bytes(column: Column, layout: ArrayLayout, num_chunks: int) -> int:
    if not layout.shape[0]:
        return 0
    return num_chunks * (math.prod(layout.chunk) * column.dtype.itemsize + CRC_BYTES) + index_bytes(layout)


def _num_chunks(column: Column, layout: ArrayLayout, rows: ShardRows) -> int:
    """Chunks in the file. Where rows differ in width, a block of rows has columns up to its widest row only."""
    step = layout.chunk[0]
    if not column.variable_width:
        return -(-layout.shape[0] // step)
    width_of_row = np.repeat(rows.widths_of(column), rows.groups[column.group])
    starts = np.arange(0, len(width_of_row), step)
    if not len(starts):
        return 0
    widest = np.maximum.reduceat(width_of_row, starts)
    return int((-(-widest // layout.chunk[-1])).clip(min=1).sum())


def _descriptions(
    manifest: Manifest, columns: Sequence[Column], arrays: Mapping[str, ArrayLayout], chunks: Mapping[str, int]
) -> dict[str, int]:
    """Sizes of the `zarr.json` files, which zarr itself writes; the group's holds the checksums of all chunks."""
    from alignkd.storage.layouts.zarr.metadata import write_metadata  # late: importing zarr takes 0.2 s

    # a checksum per chunk, and one of the index
    checksums = {name: bytearray(CRC_BYTES * (count + 1 if count else 0)) for name, count in chunks.items()}
    with temporary_folder("alignkd-plan-") as folder:
        for column in columns:
            (folder / column.name).mkdir()
        write_metadata(folder, columns, arrays, checksums, describe_targets(manifest), stored_targets(manifest))
        found = sorted(folder.rglob("*.json"))
        return {path.relative_to(folder).as_posix(): path.stat().st_size for path in found}
