"""Image pre-processing equal to the original: square padding in the mean colour, then CLIP's PIL pipeline."""

import hashlib
import io
import json
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from vlm.errors import InputError, SampleError, one_line

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
IMAGE_PROCESSING_VERSION = 1


@dataclass(frozen=True)
class ImageProcessor:
    """Bytes of an image file -> `pixel_values` float32 [3, image_size, image_size].

    Attributes:
        image_size: side in pixels of the vision tower's input.
        mean, std: per channel, of pixel values in 0..1.
        pad_to_square: `image_aspect_ratio: pad`; else the shortest side is resized and the centre cropped.
    """

    image_size: int
    mean: tuple[float, ...] = CLIP_MEAN
    std: tuple[float, ...] = CLIP_STD
    pad_to_square: bool = True

    @classmethod
    def from_preprocessor_config(
        cls, config: dict[str, Any], image_size: int, *, pad_to_square: bool
    ) -> "ImageProcessor":
        """From CLIP's `preprocessor_config.json`; `image_size` is the vision config's and must agree."""
        crop = config.get("crop_size", image_size)
        crop = crop.get("height") if isinstance(crop, dict) else crop
        if crop != image_size:
            raise InputError(f"preprocessor_config.json: crop_size {crop}, but the vision tower takes {image_size}")
        if config.get("resample", 3) != 3:
            raise InputError(f"preprocessor_config.json: resample {config['resample']}, only 3 (bicubic) is supported")
        mean, std = config.get("image_mean", CLIP_MEAN), config.get("image_std", CLIP_STD)
        return cls(image_size, tuple(mean), tuple(std), pad_to_square)

    @property
    def fingerprint(self) -> str:
        """sha256 of every setting that decides pixels."""
        settings = {"version": IMAGE_PROCESSING_VERSION, **asdict(self)}
        return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()

    def __call__(self, image_bytes: bytes) -> NDArray[np.float32]:
        """Raises SampleError when the bytes are no complete image."""
        return self.process(decode_image(image_bytes))

    def process(self, image: Image.Image) -> NDArray[np.float32]:
        """`pixel_values` of a decoded RGB image."""
        if self.pad_to_square:
            image = pad_to_square(image, tuple(int(channel * 255) for channel in self.mean))
        image = self._resize(image)
        # The order of roundings is the original's: float64 rescale, then float32 normalisation.
        pixels = (np.asarray(image) * (1 / 255)).astype(np.float32)
        mean, std = np.array(self.mean, np.float32), np.array(self.std, np.float32)
        return np.ascontiguousarray(((pixels - mean) / std).transpose(2, 0, 1))

    def _resize(self, image: Image.Image) -> Image.Image:
        size, (width, height) = self.image_size, image.size
        scale = size / min(width, height)
        target = (
            size if width <= height else int(scale * width),
            size if height <= width else int(scale * height),
        )
        image = image.resize(target, resample=Image.Resampling.BICUBIC)
        left, top = (image.width - size) // 2, (image.height - size) // 2
        return image.crop((left, top, left + size, top + size))


def decode_image(image_bytes: bytes) -> Image.Image:
    """The RGB image in `image_bytes`; SampleError when they are truncated or no image."""
    try:
        with Image.open(io.BytesIO(image_bytes)) as image:
            return image.convert("RGB")
    except UnidentifiedImageError as error:
        raise SampleError("not an image file that PIL can read; replace the file") from error
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise SampleError(f"broken image ({one_line(error)}); replace the file") from error


def pad_to_square(image: Image.Image, color: tuple[int, ...]) -> Image.Image:
    """The image centred on a square of `color`."""
    width, height = image.size
    if width == height:
        return image
    side = max(width, height)
    square = Image.new(image.mode, (side, side), color)
    square.paste(image, ((side - width) // 2, (side - height) // 2))
    return square
