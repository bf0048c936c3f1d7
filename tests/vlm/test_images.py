"""Image pre-processing and what it refuses."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vlm.errors import InputError, SampleError
from vlm.images import CLIP_MEAN, ImageProcessor

PROCESSOR = ImageProcessor(image_size=32)


def encoded(image: Image.Image, kind: str = "PNG") -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind)
    return stream.getvalue()


@pytest.mark.parametrize("size", [(64, 20), (20, 64), (64, 64), (1, 1), (3, 100)])
def test_any_shape_becomes_the_towers_square(size: tuple[int, int]) -> None:
    pixels = PROCESSOR(encoded(Image.new("RGB", size, (200, 30, 90))))
    assert pixels.shape == (3, 32, 32) and pixels.dtype == np.float32


def test_padding_has_the_mean_colour_and_so_becomes_almost_zero() -> None:
    pixels = PROCESSOR(encoded(Image.new("RGB", (64, 16), (255, 255, 255))))
    assert np.abs(pixels[:, 0]).max() < 0.02  # a band above the image: the mean, rounded to 8 bits
    assert pixels[:, 16].min() > 1.5
    assert [round(255 * mean) - int(255 * mean) for mean in CLIP_MEAN] in ([0, 0, 0], [0, 1, 0], [1, 1, 0], [0, 0, 1])


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK", "1", "I;16", "LA"])
def test_every_mode_is_read_as_rgb(mode: str) -> None:
    kind = "TIFF" if mode == "CMYK" else "PNG"
    assert PROCESSOR(encoded(Image.new(mode, (8, 8)), kind)).shape == (3, 32, 32)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.95])
def test_truncated_images_are_refused(golden_images: Path, share: float) -> None:
    whole = (golden_images / "rocket.jpg").read_bytes()
    with pytest.raises(SampleError, match=r"image"):
        PROCESSOR(whole[: int(len(whole) * share)])


def test_a_processor_of_another_size_or_filter_is_refused() -> None:
    with pytest.raises(InputError, match="crop_size 224, but the vision tower takes 32"):
        ImageProcessor.from_preprocessor_config({"crop_size": 224}, 32, pad_to_square=True)
    with pytest.raises(InputError, match="resample 2"):
        ImageProcessor.from_preprocessor_config({"resample": 2}, 32, pad_to_square=True)


def test_the_fingerprint_names_every_setting() -> None:
    others = [ImageProcessor(33), ImageProcessor(32, mean=(0.5, 0.5, 0.5)), ImageProcessor(32, pad_to_square=False)]
    assert PROCESSOR.fingerprint not in {other.fingerprint for other in others}
    assert PROCESSOR.fingerprint == ImageProcessor(32).fingerprint
