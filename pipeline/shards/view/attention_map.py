"""The attention of a text query to the vision tokens, and its place on the image."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from alignkd.pipeline.shards.view.grids import Grid, token_grids, vision_blocks
from alignkd.storage.codecs.settings import NOT_STORED
from alignkd.storage.record.record import IMAGE_TOKEN_ID, Record
from alignkd.storage.schema.manifest import Manifest
from alignkd.storage.schema.targets.attention import NAMES, attention_targets
from alignkd.storage.schema.targets.named import ATTENTION
from alignkd.storage.tools.layers.stored import StoredAttention, stored_attention
from alignkd.vlm.errors import InputError

# sides of vision towers that are tried
SIDES = range(14, 1025, 2)


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
    """The map of one head and one text query of a layer, or of the mean over heads or queries.

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
    target, layer = drawn_layer(manifest, layer)
    if head is not None and not 0 <= head < target.heads:
        raise InputError(f"--head is {head}, the store has heads 0..{target.heads - 1}")
    ends = np.cumsum(record.tokens_of_image).tolist()
    of_image = slice(ends[image] - record.tokens_of_image[image], ends[image])
    heads_RP = next(values for number, values in target.by_layer(record) if number == layer)[:, :, of_image]
    shown = f"layer {layer}, {'mean over heads' if head is None else f'head {head}'}"
    attention = heads_RP.mean(0) if head is None else heads_RP[head]
    if token is None:
        values, title = attention.mean(0), f"mean over {len(attention)} text queries, {shown}"
    else:
        row, piece = _query(record, pieces, token)
        values, title = attention[row], f"{piece} @{record.tqv_query_positions[row]}, {shown}"
    rows, columns = grid or token_grids(record, manifest)[image]
    return AttentionMap(values=values.reshape(rows, columns), title=title)


def input_number(record: Record, position: int) -> int:
    """The index in `input_ids` of a text position."""
    if not (record.input_ids == IMAGE_TOKEN_ID).any():  # one id for every position
        return position
    images_before = sum(int(positions[-1]) < position for positions in vision_blocks(record))
    return position - int(np.count_nonzero(record.vision_positions < position)) + images_before


def map_extent(
    width: int, height: int, *, padded: bool = True, image_size: int = 336
) -> tuple[float, float, float, float]:
    """Left, right, bottom and top edge of the map in pixels of the image (y downwards, pixel edges at 0).

    A padded image lies in the centre of a square of its longer side; padding on the left and top is rounded down.
    Without padding, the tower gets the central square, cut from the resized image.
    """
    if padded:
        side = max(width, height)
        left, top = -((side - width) // 2), -((side - height) // 2)
        return float(left), float(left + side), float(top + side), float(top)
    short = min(width, height)
    scale = short / image_size
    cut = [(int(image_size * length / short) - image_size) // 2 * scale for length in (width, height)]
    return cut[0], cut[0] + short, cut[1] + short, cut[1]


def is_padded(manifest: Manifest) -> tuple[bool, int]:
    """Whether the teacher saw padded images, and the tower's side, found by the processor's fingerprint.

    An unknown fingerprint gives MobileVLM V2's values: padded, 336.
    """
    from alignkd.vlm.families.mobilevlm.inputs.images import ImageProcessor

    wanted = manifest.fingerprint.get("image_processor")
    for padded in (True, False):
        for side in SIDES:
            if ImageProcessor(side, pad_to_square=padded).fingerprint == wanted:
                return padded, side
    return True, 336


def drawn_layer(manifest: Manifest, layer: int | None) -> tuple[StoredAttention, int]:
    """The target with text-query-vision attention of a layer, and the layer.

    Args:
        layer: number of a stored decoder layer; None for the first.

    Raises:
        InputError: no such layer, or the store has no text-query-vision attention.
    """
    stored = {number: at for at in stored_attention(manifest) if at.pairs == "tqv" for number in at.layers}
    if not stored:
        found, step = _why_none(manifest)
        raise InputError(f"the store has {found}, --png draws stored tqv attention; {step}")
    layer = min(stored) if layer is None else layer
    if layer not in stored:
        listed = ", ".join(map(str, sorted(stored)))
        raise InputError(f"--layer is {layer}, the store has tqv attention of layers {listed}; choose one of them")
    return stored[layer], layer


def _why_none(manifest: Manifest) -> tuple[str, str]:
    """What a store without text-query-vision attention has, and the next step."""
    if "vqv" in attention_targets(manifest.stored_more):
        return "vqv attention", "dump it with store.attention.pairs tqv or all"
    if manifest.codecs.attention not in NOT_STORED:
        return f"{manifest.codecs.attention_pairs} attention", "dump it with store.attention_pairs tqv"
    if {ATTENTION, *NAMES.values()} & {*manifest.from_stem}:
        return "no stored attention (store.attention is stem)", "dump it with store.profile compact"
    return "no attention", "dump it with store.attention float16 or sqrt_u8"


def _query(record: Record, pieces: Callable[[int], str], token: str) -> tuple[int, str]:
    """Row of a query in the attention, and its piece."""
    positions = record.tqv_query_positions.tolist()
    found: list[Any] = [pieces(int(record.input_ids[input_number(record, position)])) for position in positions]
    if token.lstrip("@").isdigit() and int(token.lstrip("@")) in positions:
        row = positions.index(int(token.lstrip("@")))
        return row, found[row]
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
    return rows[0], found[rows[0]]
