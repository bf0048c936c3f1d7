"""The attention of a text query to the vision tokens of one image, on their grid."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from alignkd.pipeline.shards.view.attention.grids import Grid, token_grids, vision_blocks
from alignkd.pipeline.shards.view.attention.layer_attention import LayerAttention, chosen_layer, stored_layer
from alignkd.storage.record.record import IMAGE_TOKEN_ID, Record
from alignkd.storage.schema.manifest import Manifest
from alignkd.vlm.errors import InputError


@dataclass(frozen=True, kw_only=True, eq=False)
class AttentionMap:
    """Attention of one query, or the mean over all, on the grid of vision tokens, float32 [rows, columns]."""

    values: NDArray[np.float32]
    title: str


def attention_map(
    record: Record,
    manifest: Manifest,
    pieces: Callable[[int], str],
    *,
    head: int | None,
    token: str | None,
    layer: int | None = None,
    image: int = 0,
    grid: Grid | None = None,
) -> AttentionMap:
    """The map of one head and one text query of a stored layer, or of the mean over heads or queries.

    Args:
        pieces: token id -> piece.
        head: number of the head; None for the mean over heads.
        token: position of the query, or its piece, with or without the mark of a leading
            blank; None for the mean over queries.
        layer: number of a stored decoder layer; None for the first.
        image: number of the image in the record.
        grid: rows and columns of its vision tokens; by default those that the record suggests.

    Raises:
        InputError: no such head, query or layer, or the store has no text-query-vision attention.
    """
    attention = stored_layer(record, chosen_layer(manifest, layer))
    grids = [grid or found for found in token_grids(record, manifest)]
    return attention_maps(record, attention, pieces, grids, head=head, token=token)[image]


def attention_maps(
    record: Record,
    attention: LayerAttention,
    pieces: Callable[[int], str],
    grids: Sequence[Grid],
    *,
    head: int | None,
    token: str | None,
) -> list[AttentionMap]:
    """The map of each image; see `attention_map`.

    Args:
        attention: the attention of one layer.
        grids: rows and columns of each image's vision tokens.

    Raises:
        InputError: no such head or query.
    """
    row, title = (None, "") if token is None else query_named(record, pieces, token)
    values = shown_values(attention, head=head, row=row)
    heads = "mean over heads" if head is None else f"head {head}"
    if row is None:
        title = f"mean over {attention.values_HQP.shape[1]} text queries"
    title = f"{title}, layer {attention.layer}, {heads}"
    return [AttentionMap(values=one, title=title) for one in on_grids(record, values, grids)]


def shown_values(attention: LayerAttention, *, head: int | None, row: int | None) -> NDArray[np.float32]:
    """The attention of one head and one query, or of the mean over heads or queries, float32 [P].

    Args:
        head: number of the head; None for the mean.
        row: number of the query among the record's; None for the mean.

    Raises:
        InputError: no such head.
    """
    heads = len(attention.values_HQP)
    if head is not None and not 0 <= head < heads:
        raise InputError(f"--head is {head}, the store has heads 0..{heads - 1}")
    values_QP = attention.values_HQP.mean(0) if head is None else attention.values_HQP[head]
    values: NDArray[np.float32] = values_QP.mean(0) if row is None else values_QP[row]
    return values


def on_grids(record: Record, values: NDArray[np.float32], grids: Sequence[Grid]) -> list[NDArray[np.float32]]:
    """Values [P] of all vision tokens as one array [rows, columns] per image."""
    each = np.split(values, np.cumsum(record.tokens_of_image[:-1], dtype=np.int64)) if record.has_image else []
    return [of_image.reshape(grid) for of_image, grid in zip(each, grids, strict=True)]


def input_number(record: Record, position: int) -> int:
    """The index in `input_ids` of a text position."""
    if not (record.input_ids == IMAGE_TOKEN_ID).any():  # one id for every position
        return position
    images_before = sum(int(positions[-1]) < position for positions in vision_blocks(record))
    return position - int(np.count_nonzero(record.vision_positions < position)) + images_before


def query_named(record: Record, pieces: Callable[[int], str], token: str) -> tuple[int, str]:
    """Number of a query among the record's, and its piece with its position.

    Args:
        token: its position, with or without `@`, or its piece, with or without the mark of a leading blank.

    Raises:
        InputError: none, or several.
    """
    positions = record.tqv_query_positions.tolist()
    found: list[Any] = [pieces(int(record.input_ids[input_number(record, position)])) for position in positions]
    places_named = [str(position) for position in positions]
    if token.lstrip("@") in places_named:
        row = places_named.index(token.lstrip("@"))
        return row, f"{found[row]} @{positions[row]}"
    rows = [row for row, piece in enumerate(found) if token in (piece, piece.lstrip("\u2581"))]
    if not rows:
        raise InputError(
            f"--token is {token!r}, not a text query of sample {record.id!r}; queries are at positions "
            f"{positions[0]}..{positions[-1]}: {' '.join(found)[:200]}"
            if positions
            else f"--token is {token!r}, but sample {record.id!r} has no text query"
        )
    if len(rows) > 1:
        places = ", ".join(str(positions[row]) for row in rows[:8])
        raise InputError(f"--token {token!r} is at {len(rows)} positions; choose one of them ({places})")
    return rows[0], f"{found[rows[0]]} @{positions[rows[0]]}"
