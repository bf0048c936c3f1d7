"""How many bytes a store will take: the layouts' own arithmetic over the rows of every sample, nothing written.

zarr: every array is cut into chunks of whole rows, the last one filled up; each chunk has 4 bytes of checksum and 16
of index. webdataset: every array of every record is a tar member of its own: 512 bytes of header, 128 of npy header,
and the whole filled up to 512. Both have their commit records, and the store its manifest and attachments.
"""

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from alignkd.pipeline.plan.samples import DataSize, SampleRows
from alignkd.storage.codecs.settings import NOT_STORED
from alignkd.storage.layouts.tar.format import BLOCK, NPY_HEADER, array_columns, closing, is_image, json_head, opening
from alignkd.storage.layouts.zarr.chunk_file import ArrayLayout, data_file
from alignkd.storage.schema.columns import GROUPS, OFFSETS, RECORD_FIELDS, Column, columns_of, describe_targets
from alignkd.storage.schema.commit_record import ArrayEntry, CommitRecord, FileEntry, Totals, shard_name
from alignkd.storage.schema.manifest import Manifest
from alignkd.storage.schema.sealed_json import seal

TARGETS = ("attention", "vision_top", "vision_all", "logits")
# what no target is: texts, ids, positions; indexes, commit records, manifest; files of the store as a whole
INPUTS, OVERHEAD, ATTACHMENTS = "inputs", "overhead", "attachments"
_INDEX_CHECKSUM = 4
_CHECKSUM_DIGITS = 8
_TAR_INDEX_HEADER = 72
_PLACE = 20
_SHA256 = "0" * 64
_KEY = "0" * 64


@dataclass(frozen=True, kw_only=True)
class StoreSize:
    """Bytes of a whole store.

    Attributes:
        by_target: of `TARGETS`, `inputs`, `overhead` and `attachments`.
    """

    by_target: Mapping[str, int]

    @property
    def total(self) -> int:
        """All of them."""
        return sum(self.by_target.values())


def store_size(
    data: DataSize,
    manifest: Manifest,
    *,
    entries_per_position: float,
    attachments: Mapping[str, int],
    overhead: bool = True,
) -> StoreSize:
    """What a store of this manifest takes.

    Args:
        entries_per_position: kept tokens of `topk`, `nucleus` and `sampled` logits at a supervised position.
        attachments: bytes of the store-level files.
        overhead: whether indexes, descriptions and commit records count; without them it is quicker.
    """
    counted: dict[str, float] = {}
    described = _Described(manifest) if overhead else None
    for shard, planned in enumerate(data.shard_sizes):
        rows = data.rows.of_shard(shard)
        share = data.unusable_bytes * planned / max(1, data.counted)
        groups = rows_of_groups(manifest, rows, entries_per_position)
        if manifest.backend == "webdataset":
            found = _tar_shard(manifest, rows, groups)
        else:
            found = _zarr_shard(manifest, rows, groups, described)
        for target, size in found.items():
            counted[target] = counted.get(target, 0) + size
        counted[OVERHEAD] += share
    scale = data.num_samples / max(1, data.counted)
    sizes = {target: round(size * scale) for target, size in counted.items()}
    sizes[OVERHEAD] += len(seal(manifest.model_dump()))
    return StoreSize(by_target={**dict.fromkeys(TARGETS, 0), **sizes, ATTACHMENTS: sum(attachments.values())})


def target_of(column: Column, manifest: Manifest) -> str:
    """Which target a stored array belongs to."""
    if column.group == "attention":
        return "attention"
    if column.group == "top":
        return "vision_top"
    if column.group == "image":
        return "vision_all"
    is_logits = column.group == "entry" or (column.group == "supervised" and column.name != "supervised_positions")
    return "logits" if is_logits else INPUTS


def rows_of_groups(manifest: Manifest, rows: SampleRows, entries_per_position: float) -> dict[str, NDArray[np.int64]]:
    """Rows that each sample brings to each group of arrays, int64 [samples]."""
    P = manifest.shapes.vision_tokens
    has_image, brings = rows.images > 0, _brings_image(rows)
    pairs = manifest.codecs.attention_pairs
    attention = {
        "tqv": rows.images * rows.queries,
        "vqv": rows.images * rows.images * P,
        "tqt": np.where(has_image, rows.queries, 0),
    }
    return {
        "record": np.ones_like(rows.tokens),
        "text": rows.text,
        "id": rows.id,
        "token": rows.tokens,
        "vision": rows.images * P,
        "query": rows.queries,
        "supervised": rows.supervised,
        "entry": np.rint(rows.supervised * entries_per_position).astype(np.int64),
        "attention": attention[pairs] if manifest.codecs.attention not in NOT_STORED else np.zeros_like(rows.tokens),
        "top": np.where(has_image, 1, 0),
        "image": np.where(brings, rows.images, 0),
        "image_bytes": np.where(brings, rows.image_bytes, 0),
    }


def _brings_image(rows: SampleRows) -> NDArray[np.bool_]:
    """Samples that are the first of the shard to show their images."""
    _, first = np.unique(rows.image, return_index=True)
    brings = np.zeros(len(rows), np.bool_)
    brings[first] = True
    return brings & (rows.images > 0)


def _zarr_shard(
    manifest: Manifest, rows: SampleRows, groups: Mapping[str, NDArray[np.int64]], described: "_Described | None"
) -> dict[str, float]:
    sizes = {INPUTS: 0.0, OVERHEAD: 0.0}
    layouts: dict[str, ArrayLayout] = {}
    files: dict[str, int] = {}
    chunks: dict[str, int] = {}
    for column in columns_of(manifest):
        total = int(groups[column.group].sum()) + (column.name == OFFSETS)
        chunk = column.chunk_shape
        width = int((rows.length - rows.images * manifest.shapes.vision_tokens).max(initial=0))
        shape = (total, *column.row_shape[:-1], width) if column.variable_width else (total, *column.row_shape)
        layouts[column.name] = ArrayLayout(shape, chunk)
        chunks[column.name] = (
            _chunks_of_varying_width(column, groups[column.group], rows, manifest)
            if column.variable_width
            else -(-total // chunk[0])
        )
        chunk_bytes = int(np.prod(chunk)) * column.dtype.itemsize
        grid = int(np.prod(layouts[column.name].grid)) if total else 0
        size = chunks[column.name] * (chunk_bytes + 4) + 16 * grid + _INDEX_CHECKSUM if total else 0
        files[data_file(column)] = size
        target = target_of(column, manifest)
        sizes[target] = sizes.get(target, 0) + size
    if described is not None:
        sizes[OVERHEAD] += described.bytes(rows, files, layouts, chunks)
    return sizes


class _Described:
    """Bytes of a zarr shard's `zarr.json` files and commit record: the first shard's, with as many checksums."""

    def __init__(self, manifest: Manifest) -> None:
        self._manifest = manifest
        self._first: tuple[int, int] | None = None

    def bytes(
        self,
        rows: SampleRows,
        files: Mapping[str, int],
        layouts: Mapping[str, ArrayLayout],
        chunks: Mapping[str, int],
    ) -> int:
        """Of a shard with these files, arrays and numbers of chunks."""
        num_chunks = sum(chunks.values())
        if self._first is None:
            described = _zarr_descriptions(self._manifest, layouts, chunks)
            commit = _commit_bytes(rows, {**described, **files}, layouts)
            self._first = num_chunks, sum(described.values()) + commit
        before, size = self._first
        return size + _CHECKSUM_DIGITS * (num_chunks - before)


def _chunks_of_varying_width(column: Column, added: NDArray[np.int64], rows: SampleRows, manifest: Manifest) -> int:
    """Chunks of an array whose rows differ in width: each block of rows has columns up to its widest row."""
    widths = rows.length - rows.images * manifest.shapes.vision_tokens
    of_rows = np.repeat(widths, added)
    step = column.chunk_shape[0]
    starts = np.arange(0, len(of_rows), step)
    if not len(starts):
        return 0
    widest = np.maximum.reduceat(of_rows, starts)
    return int((-(-widest // column.chunk_shape[-1])).clip(min=1).sum())


def _zarr_descriptions(
    manifest: Manifest, layouts: Mapping[str, ArrayLayout], chunks: Mapping[str, int]
) -> dict[str, int]:
    """Sizes of the `zarr.json` files, spelled by zarr itself; the checksums of chunks are in the group's."""
    from alignkd.storage.layouts.zarr.metadata import write_metadata  # late: importing zarr takes 0.2 s

    columns = columns_of(manifest)
    # a checksum per chunk, and one of the index
    checksums = {name: bytearray(4 * (count + 1 if count else 0)) for name, count in chunks.items()}
    with tempfile.TemporaryDirectory(prefix="alignkd-plan-") as folder:
        for column in columns:
            (Path(folder) / column.name).mkdir()
        write_metadata(Path(folder), columns, layouts, checksums, describe_targets(manifest))
        found = sorted(Path(folder).rglob("*.json"))
        return {path.relative_to(folder).as_posix(): path.stat().st_size for path in found}


def _tar_shard(manifest: Manifest, rows: SampleRows, groups: Mapping[str, NDArray[np.int64]]) -> dict[str, float]:
    columns = array_columns(columns_of(manifest))
    sizes: dict[str, float] = {INPUTS: 0.0, OVERHEAD: 0.0}
    members = len(rows)
    head = len(json_head(key=_KEY, id="", index=0, image_record=None))
    sizes[INPUTS] += float(_member(head + rows.id + rows.text).sum())
    for column in columns:
        present = _present(column, rows, groups)
        width = np.full(len(rows), column.row_bytes)
        if column.variable_width:
            text = rows.length - rows.images * manifest.shapes.vision_tokens
            width = text * int(np.prod(column.row_shape[:-1])) * column.dtype.itemsize
        header = 0 if column.group == "image_bytes" else NPY_HEADER
        size = float(_member(header + groups[column.group] * width)[present].sum())
        members += int(present.sum())
        target = target_of(column, manifest)
        sizes[target] = sizes.get(target, 0) + size
    totals = {group: int(groups[group].sum()) for group in GROUPS}
    ends = len(opening(manifest)) + len(closing(len(rows), members, totals))
    index = _tar_index_bytes(manifest, rows, 1 + len(columns))
    tar = round(sum(sizes.values())) + ends
    files = {f"{shard_name(0)}.tar": tar, f"{shard_name(0)}.idx": index}
    sizes[OVERHEAD] += ends + index + _commit_bytes(rows, files, {})
    return sizes


def _present(column: Column, rows: SampleRows, groups: Mapping[str, NDArray[np.int64]]) -> NDArray[np.bool_]:
    """Records that have a member of this column, be it empty."""
    if is_image(column):
        return groups["image"] > 0
    if column.group in ("attention", "top"):
        return rows.images > 0
    return np.ones(len(rows), np.bool_)


def _member(content: NDArray[np.int64]) -> NDArray[np.int64]:
    """Bytes of tar members with so many bytes of content."""
    return BLOCK + -(-content // BLOCK) * BLOCK


def _tar_index_bytes(manifest: Manifest, rows: SampleRows, members: int) -> int:
    n, g, f = len(rows), len(GROUPS), len(RECORD_FIELDS)
    arrays = (8 * g * (n + 1), 8 * f * n, 32 * n, int(rows.id.sum()), 24 * n, 8 * n, _PLACE * members * n)
    return _TAR_INDEX_HEADER + sum(-(-size // 8) * 8 for size in arrays) + 4


def _commit_bytes(rows: SampleRows, files: Mapping[str, int], layouts: Mapping[str, ArrayLayout]) -> int:
    """The commit record of a shard without quarantined samples."""
    record = CommitRecord(
        shard=0,
        manifest_hash=_SHA256,
        num_records=len(rows),
        quarantined=(),
        totals=Totals(
            tokens=int(rows.tokens.sum()),
            queries=int(rows.queries.sum()),
            supervised=int(rows.supervised.sum()),
            images=int(rows.images.sum()),
            bytes=sum(files.values()),
        ),
        folder=shard_name(0),
        arrays={name: ArrayEntry(shape=layout.shape, chunk=layout.chunk) for name, layout in layouts.items()},
        files=tuple(FileEntry(path=path, bytes=size, sha256=_SHA256) for path, size in files.items() if size),
    )
    return len(seal(record.document()))
