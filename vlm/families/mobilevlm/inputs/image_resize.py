"""Resizing with the same bytes as Pillow, without the whole canvas in memory.

Pillow resizes in two passes, rows then columns, with 8 bits per channel between them. Done separately and in strips,
the passes give the same bytes. The canvas of a picture of 1 x 2000 pixels, whose shortest side becomes 336, would take
900 MB.
"""

from collections.abc import Iterator

from PIL import Image

from alignkd.vlm.errors import ImageError

MAX_CANVAS_PIXELS = 2**29
"""Maximum pixels of the padded square, or of the resized image before its centre is cropped."""
_STRIP_PIXELS = 2**24

Colour = tuple[int, ...]


def resize_padded(image: Image.Image, size: int, colour: Colour) -> Image.Image:
    """The image centred in a square of `colour`, resized to `size` x `size`."""
    width, height = image.size
    side = max(width, height)
    _check_canvas(image, side * side, f"{side} x {side} once padded to a square")
    middle = Image.new("RGB", (size, side), colour)
    for top, strip in _strips(image, side):
        if width < side:
            square = Image.new("RGB", (side, strip.height), colour)
            square.paste(strip, ((side - width) // 2, 0))
            strip = square
        middle.paste(_resized(strip, size, strip.height), (0, (side - height) // 2 + top))
    return _resize_height(middle, size, 0, size)


def resize_and_crop(image: Image.Image, size: int) -> Image.Image:
    """The central square of the image after its shortest side is resized to `size` pixels."""
    width, height = image.size
    short, long = sorted(image.size)
    resized_long = int(size * long / short)
    _check_canvas(image, size * resized_long, f"{size} x {resized_long} once its shortest side is resized")
    resized_width, resized_height = (size, resized_long) if width <= height else (resized_long, size)
    left, top = (resized_width - size) // 2, (resized_height - size) // 2
    middle = Image.new("RGB", (size, height))
    for offset, strip in _strips(image, max(width, resized_width)):
        wide = _resized(strip, resized_width, strip.height)
        middle.paste(wide.crop((left, 0, left + size, strip.height)), (0, offset))
    return _resize_height(middle, resized_height, top, size)


def _strips(image: Image.Image, canvas_width: int) -> Iterator[tuple[int, Image.Image]]:
    """Bands of rows with their offsets, each small enough for a width of `canvas_width`."""
    rows = max(1, _STRIP_PIXELS // canvas_width)
    for top in range(0, image.height, rows):
        yield top, image.crop((0, top, image.width, min(top + rows, image.height)))


def _resize_height(image: Image.Image, resized_height: int, top: int, size: int) -> Image.Image:
    """Rows `top` to `top + size` of the image (`size` wide) resized to `resized_height`."""
    result = Image.new("RGB", (size, size))
    columns = max(1, _STRIP_PIXELS // max(image.height, resized_height))
    for left in range(0, size, columns):
        band = image.crop((left, 0, min(left + columns, size), image.height))
        tall = _resized(band, band.width, resized_height)
        result.paste(tall.crop((0, top, band.width, top + size)), (left, 0))
    return result


def _resized(image: Image.Image, width: int, height: int) -> Image.Image:
    return image.resize((width, height), resample=Image.Resampling.BICUBIC)


def _check_canvas(image: Image.Image, pixels: int, what: str) -> None:
    if pixels > MAX_CANVAS_PIXELS:
        raise ImageError(
            f"an image of {image.width} x {image.height} pixels is {what}, {pixels} pixels, more than "
            f"MAX_CANVAS_PIXELS {MAX_CANVAS_PIXELS}; crop the image"
        )
