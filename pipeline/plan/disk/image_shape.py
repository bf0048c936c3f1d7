"""What one image costs a model whose processor decides that: measured on a prepared image."""

import io
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from alignkd.vlm.data.turns import Turn
from alignkd.vlm.inputs.examples import ImageArrays, ImageSize, Preparation

TYPICAL_IMAGE: ImageSize = (640, 480)
_TURNS = (Turn("human", "<image>\nWhat is in the picture?"), Turn("gpt", "A small dog is lying on the sofa."))
_COLOURS = 3


@dataclass(frozen=True, kw_only=True)
class ImageShape:
    """One image as a model takes it.

    Attributes:
        tokens: vision tokens.
        patches: patches of the vision tower.
        array_bytes: bytes of its arrays on the host.
        tokens_before: text tokens before it in a sample without a text before the image.
    """

    tokens: int
    patches: int
    array_bytes: int
    tokens_before: int = 0


def measured_image(preparation: Preparation, patch_size: int, size: ImageSize = TYPICAL_IMAGE) -> ImageShape:
    """An image of `size` (width and height in pixels), prepared.

    Raises:
        SampleError: the processor refuses the size.
    """
    file = io.BytesIO()
    Image.new("RGB", size).save(file, "PNG")
    example = preparation.build(_TURNS, [file.getvalue()])
    (arrays,) = example.images
    return ImageShape(
        tokens=len(example.positions.vision_positions),
        patches=num_patches(arrays, patch_size),
        array_bytes=sum(values.nbytes for values in arrays.values()),
        tokens_before=int(example.positions.vision_positions[0]),
    )


def num_patches(arrays: ImageArrays, patch_size: int) -> int:
    """Patches of an image.

    The pixels are the largest array: tiles `[..., 3, height, width]`, or patches that the processor has cut out
    `[..., patches, values]`. Padding counts as patches, because the tower computes it, too.
    """
    pixels: NDArray[Any] = np.asarray(max(arrays.values(), key=lambda values: values.nbytes))
    if pixels.ndim >= 3 and pixels.shape[-3] == _COLOURS:
        shape = (*pixels.shape[:-3], pixels.shape[-2] // patch_size, pixels.shape[-1] // patch_size)
    else:
        shape = pixels.shape[:-1]
    return int(math.prod(shape))
