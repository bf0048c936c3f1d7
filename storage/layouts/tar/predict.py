"""Predicts the size of a tar shard: every array of every record is a member of its own, filled up to whole blocks."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from alignkd.storage.layouts.prediction import PredictedShard, ShardRows, row_bytes
from alignkd.storage.layouts.tar.format import BLOCK, Member, aligned, closing, json_head, opening, record_members
from alignkd.storage.layouts.tar.index import index_bytes
from alignkd.storage.schema.columns.shard import IMAGE_GROUPS, OFFSETS, RECORDS, Column
from alignkd.storage.schema.commit_record import shard_name
from alignkd.storage.schema.manifest import Manifest

_KEY = "0" * 64


def predicted_shard(manifest: Manifest, columns: Sequence[Column], rows: ShardRows) -> PredictedShard:
    """The tar and the index of one shard; the JSON members count as the column `text`."""
    members = record_members(columns)
    sizes: dict[str, int] = {}
    num_members = 0
    for member in members:
        present = _present(member, rows)
        sizes["text" if member.column is None else member.name] = int(_member_bytes(member, rows)[present].sum())
        num_members += int(present.sum())
    labels = {column.name: column.labels for column in columns}
    totals = {group: rows.total(group) for group in labels[OFFSETS]}
    ends = len(opening(manifest)) + len(closing(len(rows), num_members, totals))
    index = index_bytes(len(rows), len(labels[OFFSETS]), len(labels[RECORDS]), totals["id"], len(members))
    name = shard_name(0)
    files = {f"{name}.tar": sum(sizes.values()) + ends, f"{name}.idx": index}
    return PredictedShard(columns=sizes, overhead=ends + index, files=files)


def _member_bytes(member: Member, rows: ShardRows) -> NDArray[np.int64]:
    """Bytes of a member with header and padding, int64 [records]."""
    if member.column is None:
        head = len(json_head(key=_KEY, id="", index=0, image_record=None))
        content = head + rows.groups["id"] + rows.groups["text"]
    else:
        content = member.header_bytes + rows.groups[member.column.group] * row_bytes(member.column, rows)
    filled: NDArray[np.int64] = BLOCK + aligned(content)
    return filled


def _present(member: Member, rows: ShardRows) -> NDArray[np.bool_]:
    """Records that have the member, even an empty one, bool [records]."""
    if member.of_image:
        brought: NDArray[np.bool_] = np.any([rows.groups[group] > 0 for group in IMAGE_GROUPS], axis=0)
        return brought
    if member.column is not None and member.column.needs_image:
        return rows.has_image
    return np.ones(len(rows), np.bool_)
