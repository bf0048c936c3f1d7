"""Image files: their formats, limits, and decoding to RGB as stored, for every family."""

import functools
import io
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import numpy as np
from PIL import ExifTags, Image, ImageFile, UnidentifiedImageError

from alignkd.vlm.data.known_formats import HEAD_BYTES, known_format
from alignkd.vlm.errors import ImageError, InputError, one_line

MAX_IMAGE_PIXELS = 178_956_970
"""Maximum width times height of a decoded image: the limit of Pillow's defaults, hence of the original."""
FORMATS = ("JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF", "PPM", "JPEG2000", "AVIF", "ICO", "TGA")
"""Supported formats by Pillow's names. EPS is excluded, because Pillow starts another program for it."""
# Wider than a byte: Pillow clips these to 0..255 instead of scaling them.
_WIDE_MODES = ("I", "F", "I;16", "I;16L", "I;16B", "I;16N")

_ORIENTATIONS = range(1, 9)
_own_images = 0
T = TypeVar("T")

# Pillow's warnings either become the sample's error or change nothing. They are silenced once and here: a filter set
# around each call is shared with all other threads and may outlive the call.
warnings.filterwarnings("ignore", module=r"PIL\.")
logging.getLogger("PIL").addHandler(logging.NullHandler())


@contextmanager
def own_images() -> Iterator[None]:
    """A block in which this process decodes only images that it has encoded itself, in all threads.

    They are whole, so that it makes no difference whether Pillow accepts truncated files.
    """
    global _own_images
    _own_images += 1
    try:
        yield
    finally:
        _own_images -= 1


def decode_image(image_bytes: bytes) -> Image.Image:
    """The first frame of an image file as RGB, pixels as stored.

    Raises:
        ImageError: truncated, not an image, more than `MAX_IMAGE_PIXELS`, or grey values that 8 bits cannot hold.
        InputError: code in this process has set Pillow to accept truncated files; not within `own_images`.
    """
    return _decoded(image_bytes, _rgb)


def decode_with_orientation(image_bytes: bytes) -> tuple[Image.Image, int]:
    """As `decode_image`, with the EXIF orientation by which viewers turn the image; 1 means unturned.

    It is always 1 for TIFF, which Pillow turns itself.
    """
    return _decoded(image_bytes, lambda image: (_rgb(image), _orientation(image)))


def image_size(image_bytes: bytes) -> tuple[int, int]:
    """Width and height of `decode_image(image_bytes)`, from the header where that is enough.

    Raises:
        ImageError: as `decode_image`, as far as the header shows it.
    """
    return _decoded(image_bytes, _size)


def _decoded(image_bytes: bytes, read: Callable[[Image.Image], T]) -> T:
    if ImageFile.LOAD_TRUNCATED_IMAGES and not _own_images:
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


def _size(image: Image.Image) -> tuple[int, int]:
    if image.format == "TIFF":
        image.load()  # Pillow turns it then
    return image.size


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
