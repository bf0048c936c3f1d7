"""Whether an index, the shard's tables and the tar's own headers say the same thing."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from alignkd.storage.files.source import Bytes
from alignkd.storage.layouts.tables import NONE, ShardTables
from alignkd.storage.layouts.tar.format import (
    BLOCK,
    IMAGE_BYTES,
    NPY_HEADER,
    aligned,
    array_header,
    array_suffix,
    is_image,
    json_head,
    member_header,
    record_name,
)
from alignkd.storage.layouts.tar.index import TarIndex
from alignkd.storage.schema.columns import Column

MAX_WIDTH = 1 << 31


def places_problem(index: TarIndex, tables: ShardTables, arrays: Sequence[Column]) -> str | None:
    """What contradicts itself in an index, in words.

    None means: records fill the tar back to back, their members fill them back to back with nothing between but headers
    and padding, and every member is as long as its rows. So no read can leave the record, and no member can hide.
    """
    starts, images, ends = index.parts.T
    # members are the JSON, columns of the record, columns of its image
    first_image = 1 + sum(not is_image(column) for column in arrays)
    borders = np.concatenate([[index.head_bytes], ends])
    if (starts != borders[:-1]).any() or borders[-1] != index.tail_start or index.tail_start > index.tar_bytes:
        return "records do not fill the tar"
    if (images < starts).any() or (ends < images).any():
        return "a record's image lies outside the record"
    at, offsets, sizes = starts, index.places["offset"], index.places["size"]
    if ((sizes < 0) | (sizes > index.tar_bytes) | (offsets >= index.tar_bytes)).any():
        return "a member lies outside the tar"
    for place, column in enumerate((None, *arrays)):
        if place == first_image and (at != images).any():
            return "images do not begin where the index says"
        present = offsets[:, place] >= 0
        header = 0 if column is None or column.name == IMAGE_BYTES else NPY_HEADER
        if (present & (offsets[:, place] != at + BLOCK + header)).any():
            return f"members {'json' if column is None else column.name} are not where the members before them end"
        at = np.where(present, -(-(offsets[:, place] + sizes[:, place]) // BLOCK) * BLOCK, at)
        wrong = _wrong_sizes(tables, column, present, sizes[:, place])
        if wrong.any():
            return f"members {'json' if column is None else column.name} are not as long as their rows"
    if first_image > len(arrays) and (at != images).any():
        return "images do not begin where the index says"
    return None if (at == ends).all() else "members do not fill their records"


def _wrong_sizes(
    tables: ShardTables, column: Column | None, present: NDArray[np.bool_], sizes: NDArray[np.int64]
) -> NDArray[np.bool_]:
    """Members that are missing, or not as long as the tables say; division, because products of absurd numbers wrap."""
    if column is None:
        return ~present | (np.diff(tables.ends("text")) > sizes)
    rows = np.diff(tables.ends(column.group))
    row_bytes = np.full(len(rows), column.row_bytes, np.int64)
    if column.variable_width:
        widths = tables.field("attention_columns")
        row_bytes = column.row_bytes // column.row_shape[-1] * np.clip(widths, 0, MAX_WIDTH)
        if (widths > MAX_WIDTH).any():
            return widths > MAX_WIDTH
    divisor = np.maximum(row_bytes, 1)
    fits = np.where(row_bytes > 0, (sizes // divisor == rows) & (sizes % divisor == 0), sizes == 0)
    wrong: NDArray[np.bool_] = np.where(present, ~fits, rows > 0)
    return wrong


def frame_problem(
    index: TarIndex, tables: ShardTables, arrays: Sequence[Column], record: int, data: Bytes
) -> str | None:
    """A header, padding or JSON beginning that differs from what a writer writes, in words.

    Args:
        data: all bytes of the record.
    """
    numbers = tables.numbers(record)
    start, places = int(index.parts[record, 0]), index.places[record].tolist()
    name, source = record_name(numbers["dataset_index"]), numbers["image_record"]
    head = json_head(
        key=index.keys[record].tobytes().hex(),
        id=index.ids[slice(*tables.ranges(record, numbers)["id"])].tobytes().decode("utf-8", "surrogatepass"),
        index=numbers["dataset_index"],
        image_record=None if source == NONE else tables.numbers(source)["dataset_index"],
    )
    ranges = tables.ranges(record, {**numbers, "image_record": record})
    at = start
    for column, (offset, size, _) in zip((None, *arrays), places, strict=True):
        if offset < 0:
            continue
        content = data[offset - start : offset - start + size]
        if column is None:
            text = ranges["text"][1] - ranges["text"][0]
            if size != len(head) + text - 1 or content[: len(head)].tobytes() != head:
                return "its JSON is not that of the tables"
            suffix, header = "json", b""
        else:
            first, last = ranges[column.group]
            shape = (last - first, *column.row_shape)
            if column.variable_width:
                shape = (*shape[:-1], numbers["attention_columns"])
            suffix, header = array_suffix(column, content), array_header(column, shape)
        expected = member_header(f"{name}.{suffix}", len(header) + size) + header
        if data[at - start : offset - start].tobytes() != expected:
            return f"the header of {name}.{suffix} is not as written"
        at = aligned(offset + size)
        if data[offset - start + size : at - start].any():
            return f"the padding after {name}.{suffix} is not empty"
    return None
