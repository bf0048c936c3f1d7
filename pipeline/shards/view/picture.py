"""The images of a record with the teacher's attention over them, as a PNG."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from alignkd.pipeline.console.picture_file import SHARDS_SHOW, save_picture
from alignkd.pipeline.shards.view.attention_map import attention_map, is_padded, map_extent
from alignkd.pipeline.shards.view.grids import token_grids
from alignkd.pipeline.shards.view.pieces import Pieces
from alignkd.storage.record.record import Record
from alignkd.storage.schema.manifest import Manifest
from alignkd.vlm.errors import SampleError
from alignkd.vlm.inputs.image_file import decode_image

DPI = 150
OPACITY = 0.55


def draw_attention(
    record: Record,
    manifest: Manifest,
    pieces: Pieces,
    files: Sequence[bytes],
    png: Path,
    *,
    head: int | None,
    token: str | None,
    layer: int | None = None,
) -> None:
    """Draw each image next to the image under its attention map; see `attention_map`. All maps have one scale.

    Tokens whose grid is not known are drawn in one row in their order, without the image.

    Args:
        files: content of each image file.
        png: file to write.
        head: number of the head; None for the mean over heads.
        token: position or piece of a text query; None for the mean over queries.
        layer: number of a stored decoder layer; None for the first.

    Raises:
        InputError: no such head, query or layer, or the store has no such attention.
        SampleError: the image cannot be read, or differs from the one that the teacher saw.
    """
    images = [np.asarray(decode_image(content)) for content in _checked(record, files)]
    grids = token_grids(record, manifest, [(image.shape[1], image.shape[0]) for image in images])
    maps = [
        attention_map(record, manifest, pieces, head=head, token=token, layer=layer, image=n, grid=grid)
        for n, grid in enumerate(grids)
    ]
    brightest = max(float(shown.values.max()) for shown in maps)
    figure = Figure(figsize=(8, 4 * len(images)), layout="constrained")
    FigureCanvasAgg(figure)
    for image, shown, (plain, over) in zip(images, maps, figure.subplots(len(images), 2, squeeze=False), strict=True):
        _draw_image(plain, image)
        style: Any = {"cmap": "inferno", "interpolation": "nearest", "vmin": 0, "vmax": brightest}
        if len(shown.values) == 1 and shown.values.size > 1:  # tokens of an unknown grid, one after the other
            drawn = over.imshow(shown.values, aspect="auto", **style)
            over.set_yticks([])
        else:
            _draw_image(over, image)
            drawn = over.imshow(shown.values, extent=_extent(image, manifest), alpha=OPACITY, **style)
            over.set_xlim(0, image.shape[1])
            over.set_ylim(image.shape[0], 0)
        plain.set_title(f"{record.id} (index {record.index})", fontsize=8, parse_math=False)
        over.set_title(shown.title.replace("\u2581", " "), fontsize=8, parse_math=False)
        figure.colorbar(drawn, ax=over, label="attention", shrink=0.8)
    save_picture(figure, png, SHARDS_SHOW, dpi=DPI)


def _checked(record: Record, files: Sequence[bytes]) -> Sequence[bytes]:
    for image, sha256, content in zip(record.images, record.image_sha256, files, strict=True):
        if (found := hashlib.sha256(content).hexdigest()) != sha256:
            raise SampleError(
                f"image {image}: sha256 is {found[:12]}, the teacher saw {sha256[:12]}; "
                "give the folder with the original images"
            )
    return files


def _extent(image: np.ndarray[Any, Any], manifest: Manifest) -> tuple[float, float, float, float]:
    """Where the map lies on the image: where MobileVLM's tower looked, else on the whole image."""
    height, width = image.shape[:2]
    if manifest.shapes.vision_tokens is None:
        return 0.0, float(width), float(height), 0.0
    padded, side = is_padded(manifest)
    return map_extent(width, height, padded=padded, image_size=side)


def _draw_image(axes: Any, image: np.ndarray[Any, Any]) -> None:
    """Pixel edges at whole numbers, as `map_extent` counts."""
    axes.imshow(image, extent=(0, image.shape[1], image.shape[0], 0))
    axes.set_xticks([])
    axes.set_yticks([])
