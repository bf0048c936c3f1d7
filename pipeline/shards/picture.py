"""The image of a record with the teacher's first-layer attention over it, as a PNG."""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from pipeline.shards.attention_map import attention_map, is_padded, map_extent
from pipeline.shards.pieces import Pieces
from storage.manifest import Manifest
from storage.record import Record
from vlm.errors import SampleError
from vlm.images import decode_image

DPI = 150
OPACITY = 0.55


def draw_attention(
    record: Record,
    manifest: Manifest,
    pieces: Pieces,
    image_bytes: bytes,
    png: Path,
    *,
    head: int | None,
    token: str | None,
) -> None:
    """Write the image, and beside it the image under the attention map; see `attention_map`.

    Raises:
        InputError: there is no such head or query, or no such attention in the store.
        SampleError: the image cannot be read, or is not the one that the teacher saw.
    """
    if (found := hashlib.sha256(image_bytes).hexdigest()) != record.image_sha256:
        raise SampleError(
            f"image {record.image}: sha256 is {found[:12]}, the teacher saw {str(record.image_sha256)[:12]}; "
            "give the folder with the original images"
        )
    shown = attention_map(record, manifest, pieces, head=head, token=token)
    image = np.asarray(decode_image(image_bytes))
    padded, side = is_padded(manifest)
    extent = map_extent(image.shape[1], image.shape[0], padded=padded, image_size=side)
    figure = Figure(figsize=(8, 4), layout="constrained")
    FigureCanvasAgg(figure)
    plain, over = figure.subplots(1, 2)
    for axes in (plain, over):
        _draw_image(axes, image)
    drawn = over.imshow(shown.values, cmap="inferno", alpha=OPACITY, extent=extent, interpolation="nearest", vmin=0)
    over.set_xlim(0, image.shape[1])
    over.set_ylim(image.shape[0], 0)
    plain.set_title(f"{record.id} (index {record.index})", fontsize=8, parse_math=False)
    over.set_title(shown.title.replace("\u2581", " "), fontsize=8, parse_math=False)
    figure.colorbar(drawn, ax=over, label="attention", shrink=0.8)
    png.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(png, dpi=DPI, format="png")


def _draw_image(axes: Any, image: np.ndarray[Any, Any]) -> None:
    """Pixel edges at whole numbers, as `map_extent` counts."""
    axes.imshow(image, extent=(0, image.shape[1], image.shape[0], 0))
    axes.set_xticks([])
    axes.set_yticks([])
