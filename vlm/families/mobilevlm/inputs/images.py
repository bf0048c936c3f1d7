"""Image pre-processing equal to the original: square padding in the mean colour, then CLIP's PIL pipeline."""

import functools
import hashlib
import json
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from alignkd.vlm.errors import InputError
from alignkd.vlm.families.mobilevlm.inputs.image_resize import resize_and_crop, resize_padded
from alignkd.vlm.inputs.image_file import decode_image

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
RESCALE = 1 / 255
IMAGE_PROCESSING_VERSION = 2
_COLOURS = {"image_mean": CLIP_MEAN, "image_std": CLIP_STD}
# Steps in `preprocessor_config.json` that this module always does, as the original.
_STEPS = ("do_convert_rgb", "do_resize", "do_center_crop", "do_rescale", "do_normalize")


@dataclass(frozen=True)
class ImageProcessor:
    """Bytes of an image file -> `pixel_values` float32 [3, image_size, image_size].

    Attributes:
        image_size: side in pixels of the vision tower's input.
        mean, std: per channel, for pixel values in 0..1.
        pad_to_square: `image_aspect_ratio: pad`; otherwise the shortest side is resized and the centre cropped.
    """

    image_size: int
    mean: tuple[float, ...] = CLIP_MEAN
    std: tuple[float, ...] = CLIP_STD
    pad_to_square: bool = True

    @classmethod
    def from_preprocessor_config(
        cls, config: dict[str, Any], image_size: int, *, pad_to_square: bool
    ) -> "ImageProcessor":
        """From CLIP's `preprocessor_config.json`; `image_size` is the vision config's and must agree.

        Raises:
            InputError: a setting that this pipeline does not implement.
        """
        wanted: dict[str, tuple[Any, ...]] = {
            **dict.fromkeys(_STEPS, (True,)),
            "resample": (3,),
            "rescale_factor": (RESCALE,),
            "size": (image_size, {"shortest_edge": image_size}),
            "crop_size": (image_size, {"height": image_size, "width": image_size}),
        }
        for key, allowed in wanted.items():
            if (found := config.get(key, allowed[0])) not in allowed:
                raise InputError(
                    f"preprocessor_config.json: {key} is {found}, but the vision tower takes {allowed[0]}; "
                    "give the config that belongs to it"
                )
        colours = {key: tuple(config.get(key, default)) for key, default in _COLOURS.items()}
        for key, values in colours.items():
            if len(values) != 3:
                raise InputError(
                    f"preprocessor_config.json: {key} has {len(values)} values, the vision tower takes 3 (R, G, B)"
                )
        return cls(image_size, colours["image_mean"], colours["image_std"], pad_to_square)

    @property
    def fingerprint(self) -> str:
        """sha256 of every setting that decides pixels."""
        settings = {"version": IMAGE_PROCESSING_VERSION, **asdict(self)}
        return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()

    def __call__(self, image_bytes: bytes) -> NDArray[np.float32]:
        """`pixel_values` of an image file.

        Raises:
            ImageError: as `decode_image` and `process`.
        """
        return self.process(decode_image(image_bytes))

    def process(self, image: Image.Image) -> NDArray[np.float32]:
        """`pixel_values` of a decoded RGB image.

        Raises:
            ImageError: the image is so elongated that its canvas would be too large.
        """
        size = self.image_size
        if self.pad_to_square:
            image = resize_padded(image, size, tuple(int(channel * 255) for channel in self.mean))
        else:
            image = resize_and_crop(image, size)
        pixels = np.empty((3, size, size), np.float32)
        planes = np.asarray(image).transpose(2, 0, 1)
        for values, plane, out in zip(_pixel_values(self.mean, self.std), planes, pixels, strict=True):
            np.take(values, plane, out=out, mode="clip")  # all values are in range; the other modes would copy `out`
        return pixels


@functools.cache
def _pixel_values(mean: tuple[float, ...], std: tuple[float, ...]) -> NDArray[np.float32]:
    """The normalised value of each of the 256 values of a channel: float32 [3, 256]."""
    # the order of roundings is the original's: float64 rescale, then float32 normalisation
    scaled_256 = (np.arange(256) * RESCALE).astype(np.float32)
    mean_31, std_31 = np.array(mean, np.float32)[:, None], np.array(std, np.float32)[:, None]
    values: NDArray[np.float32] = (scaled_256 - mean_31) / std_31
    return values
