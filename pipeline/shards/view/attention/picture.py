"""The images of a record with the attention over them, as a PNG."""

import io
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import NDArray

from alignkd.pipeline.console.picture_file import SHARDS_SHOW, save_picture
from alignkd.pipeline.shards.view.attention.attention_map import AttentionMap, attention_maps
from alignkd.pipeline.shards.view.attention.extent import Extent, extent_of
from alignkd.pipeline.shards.view.attention.grids import token_grids
from alignkd.pipeline.shards.view.attention.layer_attention import LayerAttention
from alignkd.pipeline.shards.view.attention.top_tokens import top_cells
from alignkd.pipeline.shards.view.pieces import Pieces
from alignkd.storage.record.record import Record
from alignkd.storage.schema.manifest import Manifest
from alignkd.vlm.inputs.image_file import decode_image

DPI = 150
OPACITY = 0.55
OUTLINE = "white"
MAX_TITLE = 100


def draw_attention(
    record: Record,
    manifest: Manifest,
    pieces: Pieces,
    files: Sequence[bytes],
    png: Path,
    *,
    attention: LayerAttention,
    head: int | None,
    token: str | None,
) -> None:
    """Write the picture of `attention_figure` to a file.

    Args:
        png: file to write.

    Raises:
        InputError: no such head or query.
        ImageError: an image cannot be decoded.
        OSError: the file cannot be written.
    """
    figure = attention_figure(record, manifest, pieces, files, attention=attention, head=head, token=token)
    save_picture(figure, png, SHARDS_SHOW, dpi=DPI)


def attention_png(
    record: Record,
    manifest: Manifest,
    pieces: Pieces,
    files: Sequence[bytes | None],
    *,
    attention: LayerAttention,
    head: int | None,
    token: str | None,
) -> bytes:
    """The picture of `attention_figure` as the bytes of a PNG; raises as `draw_attention`."""
    figure = attention_figure(record, manifest, pieces, files, attention=attention, head=head, token=token)
    content = io.BytesIO()
    figure.savefig(content, dpi=DPI, format="png")
    return content.getvalue()


def attention_figure(
    record: Record,
    manifest: Manifest,
    pieces: Pieces,
    files: Sequence[bytes | None],
    *,
    attention: LayerAttention,
    head: int | None,
    token: str | None,
) -> Figure:
    """Each image next to the image under its attention map. All maps have one scale.

    The tokens with the most attention are outlined, as many as the focus loss takes. Tokens whose grid is not known are
    drawn in one row in their order, without the image. An image that is not there is left out; its map is drawn.

    Args:
        files: content of each image file that the teacher saw; None where it is not there.
        head: number of the head; None for the mean over heads.
        token: position or piece of a text query; None for the mean over queries.

    Raises:
        InputError: no such head or query.
        ImageError: an image cannot be decoded.
    """
    images = [None if content is None else np.asarray(decode_image(content)) for content in files]
    grids = token_grids(record, manifest, sizes_of(images))
    maps = attention_maps(record, attention, pieces, grids, head=head, token=token)
    cells = top_cells([shown.values for shown in maps], manifest.shapes.vision_top_tokens)
    brightest = max(float(shown.values.max()) for shown in maps)
    figure = Figure(figsize=(8, 4 * len(images)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(images), 2, squeeze=False)
    for image, shown, top, (plain, over) in zip(images, maps, cells, axes, strict=True):
        drawn = _draw_map(over, image, shown, manifest, brightest, top)
        if image is None:
            plain.set_axis_off()
        else:
            _draw_image(plain, image)
        plain.set_title(f"{drawable(record.id)} (index {record.index})", fontsize=8, parse_math=False)
        over.set_title(drawable(shown.title.replace("\u2581", " ")), fontsize=8, parse_math=False)
        figure.colorbar(drawn, ax=over, label="attention", shrink=0.8)
    return figure


def drawable(text: str) -> str:
    """A text of a store as matplotlib draws it: not too long, without control characters and halves of surrogates."""
    kept = text if len(text) <= MAX_TITLE else f"{text[:MAX_TITLE]}…"
    return "".join("\ufffd" if unicodedata.category(letter) in ("Cc", "Cs") else letter for letter in kept)


def sizes_of(images: Sequence[NDArray[np.uint8] | None]) -> list[tuple[int, int]] | None:
    """Width and height of each image; None unless all are there."""
    sizes = [(image.shape[1], image.shape[0]) for image in images if image is not None]
    return sizes if len(sizes) == len(images) else None


def _draw_map(
    axes: Any,
    image: NDArray[np.uint8] | None,
    shown: AttentionMap,
    manifest: Manifest,
    brightest: float,
    top: Sequence[tuple[int, int]],
) -> Any:
    """The drawn map, with the cells `top` outlined."""
    rows, columns = shown.values.shape
    is_row = rows == 1 and columns > 1  # tokens of an unknown grid, one after the other
    style: Any = {"cmap": "inferno", "interpolation": "nearest", "vmin": 0, "vmax": brightest}
    extent: Extent = (0.0, float(columns), float(rows), 0.0)
    if is_row or image is None:
        drawn = axes.imshow(shown.values, extent=extent, aspect="auto" if is_row else "equal", **style)
        axes.set_yticks([])
    else:
        height, width = image.shape[:2]
        extent = extent_of(manifest, width, height)
        _draw_image(axes, image)
        drawn = axes.imshow(shown.values, extent=extent, alpha=OPACITY, **style)
        axes.set_xlim(0, width)
        axes.set_ylim(height, 0)
    left, right, bottom, upper = extent
    across, down = (right - left) / columns, (bottom - upper) / rows
    for row, column in top:
        corner = (left + column * across, upper + row * down)
        axes.add_patch(Rectangle(corner, across, down, fill=False, edgecolor=OUTLINE, linewidth=0.8))
    return drawn


def _draw_image(axes: Any, image: NDArray[np.uint8]) -> None:
    """Pixel edges at whole numbers, as `map_extent` counts."""
    axes.imshow(image, extent=(0, image.shape[1], image.shape[0], 0))
    axes.set_xticks([])
    axes.set_yticks([])
