"""Pixels: equal to the original's on stored cases, to transformers' and to a twin on any size; settings refused."""

import hashlib
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from alignkd.vlm.errors import InputError, SampleError
from alignkd.vlm.families.mobilevlm.inputs.images import CLIP_MEAN, CLIP_STD, ImageProcessor

PROCESSOR = ImageProcessor(image_size=32)
SIZES = [
    (1, 1),
    (1, 9),
    (9, 1),
    (2, 2),
    (31, 33),
    (32, 32),
    (33, 127),
    (127, 33),
    (64, 65),
    (97, 32),
    (150, 41),
    (5, 90),
]


def encoded(image: Image.Image, kind: str = "PNG") -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind)
    return stream.getvalue()


def noise(width: int, height: int) -> Image.Image:
    values = np.random.default_rng(width * 1000 + height).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(values)


def twin(image: Image.Image, size: int, *, pad: bool) -> NDArray[np.float32]:
    """The original pipeline with every canvas whole; rows are resized before columns, as in Pillow 12 and older."""
    if pad and image.width != image.height:
        side = max(image.size)
        square = Image.new("RGB", (side, side), tuple(int(mean * 255) for mean in CLIP_MEAN))
        square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
        image = square
    long = int(size * max(image.size) / min(image.size))
    width, height = (size, long) if image.width <= image.height else (long, size)
    image = image.resize((width, image.height), Image.Resampling.BICUBIC)
    image = image.resize((width, height), Image.Resampling.BICUBIC)
    left, top = (width - size) // 2, (height - size) // 2
    pixels = np.asarray(image)[top : top + size, left : left + size]
    scaled = (pixels.astype(np.float64) * 0.00392156862745098).astype(np.float32)
    return ((scaled - np.float32(CLIP_MEAN)) / np.float32(CLIP_STD)).transpose(2, 0, 1)


# sha256 (16 digits) of what transformers 4.33.1 with Pillow 10.2.0 makes of these parts of the golden images.
ORIGINAL = [
    ("chelsea.png", (0, 0, 451, 300), 32, True, "bfd828043f6bfc01"),
    ("chelsea.png", (0, 0, 451, 300), 97, False, "8c34b7c4d19a74e5"),
    ("chelsea.png", (200, 0, 260, 299), 32, True, "5148b5202c7b4a2b"),
    ("chelsea.png", (200, 0, 260, 299), 32, False, "cb3a1bed4124f49d"),
    ("coffee.png", (0, 100, 599, 141), 97, True, "97c2f0ae340250fd"),
    ("coffee.png", (0, 100, 599, 141), 32, False, "34e1874f0f1f9816"),
    ("coffee.png", (5, 7, 42, 384), 97, True, "8d8215ddda9e4178"),
    ("coffee.png", (5, 7, 42, 384), 32, False, "9a80e3248329291c"),
    ("astronaut.png", (0, 0, 1, 200), 32, True, "08b3bd425fb7b8a8"),
    ("astronaut.png", (0, 0, 1, 200), 97, False, "2ed057ed7dbdae03"),
    ("astronaut.png", (100, 100, 102, 102), 32, False, "775a73d206c63231"),
    ("astronaut.png", (60, 60, 401, 400), 97, False, "e281ff89e2cf515f"),
]


@pytest.mark.parametrize(("name", "box", "size", "pad", "digest"), ORIGINAL)
def test_pixels_are_those_of_the_original_environment(
    golden_images: Path, name: str, box: tuple[int, int, int, int], size: int, pad: bool, digest: str
) -> None:
    part = Image.open(golden_images / name).convert("RGB").crop(box)
    pixels = ImageProcessor(size, pad_to_square=pad)(encoded(part))
    assert hashlib.sha256(pixels.tobytes()).hexdigest()[:16] == digest


@pytest.mark.parametrize("pad", [True, False])
@pytest.mark.parametrize("size", SIZES)
def test_pixels_equal_the_twin(size: tuple[int, int], pad: bool) -> None:
    image = noise(*size)
    pixels = ImageProcessor(32, pad_to_square=pad)(encoded(image))
    assert pixels.shape == (3, 32, 32) and pixels.dtype == np.float32
    np.testing.assert_array_equal(pixels, twin(image, 32, pad=pad))


@settings(max_examples=60)
@given(width=st.integers(1, 300), height=st.integers(1, 300), size=st.integers(8, 70), pad=st.booleans())
def test_pixels_equal_the_twin_at_any_size(width: int, height: int, size: int, pad: bool) -> None:
    image = noise(width, height)
    np.testing.assert_array_equal(ImageProcessor(size, pad_to_square=pad).process(image), twin(image, size, pad=pad))


@pytest.mark.parametrize("strip_pixels", [1, 500, 5000])
@pytest.mark.parametrize("pad", [True, False])
def test_strips_of_any_height_give_the_same_pixels(
    monkeypatch: pytest.MonkeyPatch, pad: bool, strip_pixels: int
) -> None:
    monkeypatch.setattr("alignkd.vlm.families.mobilevlm.inputs.image_resize._STRIP_PIXELS", strip_pixels)
    for size in SIZES:
        image = noise(*size)
        pixels = ImageProcessor(32, pad_to_square=pad).process(image)
        np.testing.assert_array_equal(pixels, twin(image, 32, pad=pad))


@pytest.fixture(scope="module")
def clip_processor() -> Any:
    """transformers' own processor, PIL variant, for 32 pixels."""
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    return CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})


@pytest.mark.parametrize("size", SIZES)
def test_padded_pixels_equal_those_of_transformers(clip_processor: Any, size: tuple[int, int]) -> None:
    image = noise(*size)
    square = Image.new("RGB", (max(size), max(size)), tuple(int(mean * 255) for mean in clip_processor.image_mean))
    square.paste(image, ((max(size) - size[0]) // 2, (max(size) - size[1]) // 2))
    expected = clip_processor.preprocess(square, return_tensors="np")["pixel_values"][0]
    np.testing.assert_array_equal(PROCESSOR.process(image), expected)


@pytest.mark.parametrize("size", SIZES)
def test_unpadded_pixels_differ_from_transformers_by_rounding_only(clip_processor: Any, size: tuple[int, int]) -> None:
    """Pillow 13 may resize columns before rows. On waves (up to 26 levels between pixels) a shift would show."""
    x, y = np.meshgrid(np.arange(size[0]), np.arange(size[1]))
    waves = 127.5 + 63 * np.cos(x / 5) + 63 * np.cos(y / 5)
    image = Image.fromarray(np.repeat(waves[..., None], 3, axis=2).astype(np.uint8))
    found = ImageProcessor(32, pad_to_square=False).process(image)
    expected = clip_processor.preprocess(image, return_tensors="np")["pixel_values"][0]
    levels = np.abs(found - expected) * np.array(CLIP_STD)[:, None, None] * 255
    assert levels.max() < 1.01


def test_padding_has_the_mean_colour_and_so_becomes_almost_zero() -> None:
    pixels = PROCESSOR(encoded(Image.new("RGB", (64, 16), (255, 255, 255))))
    assert np.abs(pixels[:, 0]).max() < 0.02  # a band above the image: the mean, rounded down to 8 bits
    assert pixels[:, 16].min() > 1.5


@pytest.mark.parametrize(
    ("size", "pad", "message"),
    [
        (
            (1, 600_000),
            False,
            "1 x 600000 pixels is 32 x 19200000 .* 614400000 pixels, more than MAX_CANVAS_PIXELS 5368",
        ),
        ((30_000, 1), True, "30000 x 1 pixels is 30000 x 30000 .* 900000000 pixels, more than MAX_CANVAS_PIXELS 5368"),
    ],
)
def test_a_line_of_which_nothing_would_be_seen_is_refused(size: tuple[int, int], pad: bool, message: str) -> None:
    with pytest.raises(SampleError, match=message):
        ImageProcessor(32, pad_to_square=pad).process(Image.new("RGB", size))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"crop_size": 224}, "crop_size is 224, but the vision tower takes 32"),
        ({"crop_size": {"height": 32, "width": 64}}, "crop_size is .*64.*, but the vision tower takes 32"),
        ({"size": {"shortest_edge": 36}}, "size is .*36.*, but the vision tower takes 32"),
        ({"size": {"height": 32, "width": 32}}, "size is .*, but the vision tower takes 32"),
        ({"resample": 2}, "resample is 2, but the vision tower takes 3"),
        ({"rescale_factor": 0.5}, "rescale_factor is 0.5"),
        ({"do_center_crop": False}, "do_center_crop is False"),
        ({"do_normalize": False}, "do_normalize is False"),
        ({"image_mean": [0.5]}, "image_mean has 1 values"),
    ],
)
def test_a_processor_that_makes_other_pixels_is_refused(config: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        ImageProcessor.from_preprocessor_config(config, 32, pad_to_square=True)


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"size": 32, "crop_size": 32, "resample": 3},
        {
            "size": {"shortest_edge": 32},
            "crop_size": {"height": 32, "width": 32},
            "rescale_factor": 0.00392156862745098,
        },
    ],
)
def test_old_and_new_spellings_of_the_same_processor(config: dict[str, Any]) -> None:
    assert ImageProcessor.from_preprocessor_config(config, 32, pad_to_square=True) == PROCESSOR


def test_the_fingerprint_names_every_setting() -> None:
    others = [ImageProcessor(33), ImageProcessor(32, mean=(0.5, 0.5, 0.5)), ImageProcessor(32, pad_to_square=False)]
    assert PROCESSOR.fingerprint not in {other.fingerprint for other in others}
    assert PROCESSOR.fingerprint == ImageProcessor(32).fingerprint
