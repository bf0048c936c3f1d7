"""Image pre-processing equal to the original: square padding in the mean colour, then CLIP's PIL pipeline."""

import functools
import hashlib
import io
import json
import logging
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageFile, UnidentifiedImageError

from alignkd.vlm.data.known_formats import HEAD_BYTES, known_format
from alignkd.vlm.errors import ImageError, InputError, one_line
from alignkd.vlm.families.mobilevlm.inputs.image_resize import resize_and_crop, resize_padded

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
RESCALE = 1 / 255
IMAGE_PROCESSING_VERSION = 2
MAX_IMAGE_PIXELS = 178_956_970
"""Maximum width times height of a decoded image: the limit of Pillow's defaults, hence of the original."""
FORMATS = ("JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF", "PPM", "JPEG2000", "AVIF", "ICO", "TGA")
"""Supported formats by Pillow's names. EPS is excluded, because Pillow starts another program for it."""
# Wider than a byte: Pillow clips these to 0..255 instead of scaling them.
_WIDE_MODES = ("I", "F", "I;16", "I;16L", "I;16B", "I;16N")
_COLOURS = {"image_mean": CLIP_MEAN, "image_std": CLIP_STD}
# Steps in `preprocessor_config.json` that this module always does, as the original.
_STEPS = ("do_convert_rgb", "do_resize", "do_center_crop", "do_rescale", "do_normalize")

_ORIENTATIONS = range(1, 9)
T = TypeVar("T")

# Pillow's warnings either become the sample's error or change nothing. They are silenced once and here: a filter set
# around each call is shared with all other threads and may outlive the call.
warnings.filterwarnings("ignore", module=r"PIL\.")
logging.getLogger("PIL").addHandler(logging.NullHandler())


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


def decode_image(image_bytes: bytes) -> Image.Image:
    """The first frame of an image file as RGB, pixels as stored.

    Raises:
        ImageError: truncated, not an image, more than `MAX_IMAGE_PIXELS`, or grey values that 8 bits cannot hold.
        InputError: code in this process has set Pillow to accept truncated files.
    """
    return _decoded(image_bytes, _rgb)


def decode_with_orientation(image_bytes: bytes) -> tuple[Image.Image, int]:
    """As `decode_image`, with the EXIF orientation by which viewers turn the image; 1 means unturned.

    It is always 1 for TIFF, which Pillow turns itself.
    """
    return _decoded(image_bytes, lambda image: (_rgb(image), _orientation(image)))


def _decoded(image_bytes: bytes, read: Callable[[Image.Image], T]) -> T:
    if ImageFile.LOAD_TRUNCATED_IMAGES:
        raise InputError(
            "PIL.ImageFile.LOAD_TRUNCATED_IMAGES is True, which silently fills the missing part of a broken image with "
            "grey; set it to False"
        )
    try:
        with Image.open(io.BytesIO(image_bytes), formats=_formats()) as image:
            _check_pixels(image.size)
            return read(image)
    except (ImageError, MemoryError):
        raise
    except UnidentifiedImageError as error:
        raise ImageError(f"not an image file that can be read ({', '.join(FORMATS)}){_instead(image_bytes)}") from error
    except Image.DecompressionBombError as error:
        raise ImageError(f"{one_line(error).partition(',')[0]}; shrink the image") from error
    except Exception as error:  # damaged bytes make the decoders raise nearly anything
        raise ImageError(f"broken image ({_named(error)}); replace the file") from error


def _instead(data: bytes) -> str:
    found = known_format(data[:HEAD_BYTES])
    return "; replace the file" if found is None else f", but {found.name}; {found.step}"


@functools.cache
def _formats() -> tuple[str, ...]:
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)  # Pillow can be built without some of them


def _check_pixels(size: tuple[int, int]) -> None:
    """Refuse images that are too large by their header, before decoding."""
    width, height = size
    if width * height > MAX_IMAGE_PIXELS:
        raise ImageError(
            f"an image of {width} x {height} = {width * height} pixels, more than MAX_IMAGE_PIXELS {MAX_IMAGE_PIXELS}; "
            "shrink the image"
        )


def _rgb(image: Image.Image) -> Image.Image:
    rgb = image.convert("RGB")
    if image.mode in _WIDE_MODES:
        values = np.asarray(image)
        if not np.array_equal(values, np.asarray(rgb.getchannel(0))):
            raise ImageError(
                f"{image.mode} pixels from {values.min():g} to {values.max():g}, but Pillow keeps only whole numbers "
                "from 0 to 255; save the image with 8 bits per channel"
            )
    return rgb


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation of a decoded image; 1 if its EXIF data is damaged, as in viewers."""
    if image.format == "TIFF":
        return 1
    try:
        found = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # damaged bytes make the parser raise nearly anything
        return 1
    return found if found in _ORIENTATIONS else 1


def _named(error: Exception) -> str:
    text = one_line(error)[:200]
    return text if isinstance(error, OSError) and text else f"{type(error).__name__}: {text}"
