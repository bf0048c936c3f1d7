"""Where the vision tokens of an image lie on it."""

import functools

from alignkd.storage.schema.manifest import Manifest

# left, right, bottom and top edge in pixels of the image: y downwards, pixel edges at whole numbers from 0
Extent = tuple[float, float, float, float]
# sides of vision towers that are tried
SIDES = range(14, 1025, 2)


def extent_of(manifest: Manifest, width: int, height: int) -> Extent:
    """Where the grid of an image's vision tokens lies: where MobileVLM's tower looked, else on the whole image."""
    if manifest.shapes.vision_tokens is None:
        return 0.0, float(width), float(height), 0.0
    padded, side = is_padded(manifest)
    return map_extent(width, height, padded=padded, image_size=side)


def map_extent(width: int, height: int, *, padded: bool = True, image_size: int = 336) -> Extent:
    """Where the square that the tower sees lies on the image.

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
    return _processor_with(manifest.fingerprint.get("image_processor"))


@functools.cache
def _processor_with(wanted: str | None) -> tuple[bool, int]:
    from alignkd.vlm.families.mobilevlm.inputs.images import ImageProcessor

    for padded in (True, False):
        for side in SIDES:
            if ImageProcessor(side, pad_to_square=padded).fingerprint == wanted:
                return padded, side
    return True, 336
