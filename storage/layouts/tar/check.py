"""Checks that an index, the shard's tables and the tar's own headers agree."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from alignkd.storage.files.source import Bytes
from alignkd.storage.layouts.tables import ShardTables
from alignkd.storage.layouts.tar.format import BLOCK, Member, aligned, json_head
from alignkd.storage.layouts.tar.index import TarIndex
from alignkd.storage.schema.columns.shard import NO_ROW, Column

MAX_WIDTH = 1 << 31


def places_problem(index: TarIndex, tables: ShardTables, members: Sequence[Member]) -> str | None:
    """Describe the first contradiction in an index; None if there is none.

    None means: the records fill the tar back to back, their members fill the records back to back with nothing between
    them but headers and padding, and every member is as long as its rows. So no read can leave the record, and no
    member can be hidden.
    """
    starts, images, ends = index.parts.T
    borders = np.concatenate([[index.head_bytes], ends])
    if (starts != borders[:-1]).any() or borders[-1] != index.tail_start or index.tail_start > index.tar_bytes:
        return "records do not fill the tar"
    if (images < starts).any() or (ends < images).any():
        return "a record's image lies outside the record"
    at, offsets, sizes = starts, index.places["offset"], index.places["size"]
    if ((sizes < 0) | (sizes > index.tar_bytes) | (offsets >= index.tar_bytes)).any():
        return "a member lies outside the tar"
    images_begin = None
    for place, member in enumerate(members):
        if member.of_image and images_begin is None:
            images_begin = at
        present = offsets[:, place] >= 0
        if (present & (offsets[:, place] != at + BLOCK + member.header_bytes)).any():
            return f"members {member.name} are not where the members before them end"
        at = np.where(present, aligned(offsets[:, place] + sizes[:, place]), at)
        wrong = _wrong_sizes(tables, member.column, present, sizes[:, place])
        if wrong.any():
            return f"members {member.name} are not as long as their rows"
    if ((at if images_begin is None else images_begin) != images).any():
        return "images do not begin where the index has them"
    return None if (at == ends).all() else "members do not fill their records"


def _wrong_sizes(
    tables: ShardTables, column: Column | None, present: NDArray[np.bool_], sizes: NDArray[np.int64]
) -> NDArray[np.bool_]:
    """Whether a record's member is missing, or not as long as the tables require, bool [records]."""
    if column is None:
        return ~present | (np.diff(tables.ends("text")) > sizes)
    rows = np.diff(tables.ends(column.group))
    row_bytes = np.full(len(rows), column.row_bytes, np.int64)
    if column.variable_width:
        widths = tables.field(column.width_field)
        row_bytes = column.row_bytes // column.row_shape[-1] * np.clip(widths, 0, MAX_WIDTH)
        if (widths > MAX_WIDTH).any():
            return widths > MAX_WIDTH
    divisor = np.maximum(row_bytes, 1)  # divide: a product of hostile numbers overflows
    fits = np.where(row_bytes > 0, (sizes // divisor == rows) & (sizes % divisor == 0), sizes == 0)
    wrong: NDArray[np.bool_] = np.where(present, ~fits, rows > 0)
    return wrong


def frame_problem(
    index: TarIndex, tables: ShardTables, members: Sequence[Member], record: int, data: Bytes
) -> str | None:
    """Describe the first header, padding or start of the JSON that a writer would write otherwise; None if all agree.

    Args:
        data: all bytes of the record.
    """
    numbers = tables.numbers(record)
    start, places = int(index.parts[record, 0]), index.places[record].tolist()
    ranges = tables.ranges(record, {**numbers, "image_record": record})
    at = start
    for member, (offset, size, _) in zip(members, places, strict=True):
        if offset < 0:
            continue
        content = data[offset - start : offset - start + size]
        shape: tuple[int, ...] = ()
        if member.column is None:
            head, text = _json_head(index, tables, record), ranges["text"][1] - ranges["text"][0]
            if size != len(head) + text - 1 or content[: len(head)].tobytes() != head:
                return "its JSON is not that of the tables"
        else:
            first, last = ranges[member.column.group]
            shape = member.column.shape_of(last - first, numbers)
        name = member.file_name(numbers["dataset_index"], content)
        if data[at - start : offset - start].tobytes() != member.frame(numbers["dataset_index"], content, shape):
            return f"the header of {name} is not as written"
        at = aligned(offset + size)
        if data[offset - start + size : at - start].any():
            return f"the padding after {name} is not empty"
    return None


def _json_head(index: TarIndex, tables: ShardTables, record: int) -> bytes:
    numbers = tables.numbers(record)
    source = numbers["image_record"]
    first, last = tables.ends("id")[record : record + 2].tolist()
    return json_head(
        key=index.keys[record].tobytes().hex(),
        id=index.ids[first:last].tobytes().decode("utf-8", "surrogatepass"),
        index=numbers["dataset_index"],
        image_record=None if source == NO_ROW else tables.numbers(source)["dataset_index"],
    )
