"""Image files of every kind met in the wild: read as the original reads them, or refused in one line."""

import io
import json
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image, ImageFile

from alignkd.vlm.errors import InputError, SampleError
from alignkd.vlm.families.mobilevlm.inputs.images import ImageProcessor
from alignkd.vlm.inputs.image_file import MAX_IMAGE_PIXELS, decode_image

# Pillow's remarks on damaged files; that they are quiet outside of pytest is tested in a child process.
pytestmark = pytest.mark.filterwarnings("ignore")

RGB = np.random.default_rng(7).integers(0, 256, (9, 14, 3), dtype=np.uint8)
GREY = RGB[..., 0]
OTHER = RGB[::-1].copy()


def saved(pixels: NDArray[np.generic] | Image.Image, kind: str, **options: object) -> bytes:
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def png(width: int, height: int, *, depth: int, colour: int, rows: bytes) -> bytes:
    """A PNG file that Pillow would not write."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def decoded(data: bytes) -> NDArray[np.uint8]:
    return np.asarray(decode_image(data))


def grey(values: NDArray[np.generic]) -> NDArray[np.uint8]:
    return np.repeat(values[..., None], 3, axis=2).astype(np.uint8)


def turned(kind: str, **options: object) -> bytes:
    """The file of `RGB` with a note to show it turned by 90 degrees clockwise."""
    exif = Image.Exif()
    exif[0x0112] = 6
    data = saved(RGB, kind, exif=exif, **options)
    assert Image.open(io.BytesIO(data)).getexif()[0x0112] == 6
    return data


@pytest.mark.parametrize(("kind", "options"), [("PNG", {}), ("JPEG", {}), ("WEBP", {"lossless": True})])
def test_exif_orientation_is_ignored(kind: str, options: dict[str, object]) -> None:
    np.testing.assert_array_equal(decoded(turned(kind, **options)), decoded(saved(RGB, kind, **options)))


def test_pillow_itself_turns_tiff_files() -> None:
    np.testing.assert_array_equal(decoded(turned("TIFF")), np.rot90(RGB, -1))


def test_cmyk_jpegs_are_taken_for_adobes_inverted_ones_with_or_without_the_mark() -> None:
    with_mark = saved(Image.new("CMYK", (16, 16), (255, 128, 0, 0)), "JPEG", quality=100)
    start = with_mark.index(b"\xff\xee")
    length = struct.unpack(">H", with_mark[start + 2 : start + 4])[0]
    without = with_mark[:start] + with_mark[start + 2 + length :]
    assert b"Adobe" in with_mark and b"Adobe" not in without
    np.testing.assert_array_equal(decoded(with_mark), decoded(without))
    assert np.abs(decoded(with_mark).astype(int) - [0, 127, 255]).max() <= 2  # 255 - C, 255 - M, 255 - Y


def test_cmyk_tiff_is_255_minus_ink() -> None:
    np.testing.assert_array_equal(decoded(saved(Image.fromarray(RGB).convert("CMYK"), "TIFF")), RGB)


@pytest.mark.parametrize(
    ("kind", "transparency"), [("PNG", None), ("PNG", 3), ("PNG", bytes(range(0, 160, 10))), ("GIF", None), ("GIF", 3)]
)
def test_palettes_give_their_colours_transparent_or_not(kind: str, transparency: int | bytes | None) -> None:
    indexed = Image.fromarray(RGB).quantize(16)
    palette = np.array(indexed.getpalette()).reshape(-1, 3)
    options = {} if transparency is None else {"transparency": transparency}
    np.testing.assert_array_equal(decoded(saved(indexed, kind, **options)), palette[np.asarray(indexed)])


@pytest.mark.parametrize(("kind", "options"), [("PNG", {}), ("WEBP", {"lossless": True, "exact": True}), ("TIFF", {})])
def test_the_colour_under_transparent_pixels_shows(kind: str, options: dict[str, object]) -> None:
    clear = np.concatenate([RGB, np.zeros_like(RGB[..., :1])], axis=2)
    np.testing.assert_array_equal(decoded(saved(clear, kind, **options)), RGB)


def test_grey_with_alpha_and_colour_keys() -> None:
    la = np.stack([GREY, GREY // 2], axis=2)
    np.testing.assert_array_equal(decoded(saved(Image.fromarray(la, "LA"), "PNG")), grey(GREY))
    np.testing.assert_array_equal(decoded(saved(RGB, "PNG", transparency=tuple(RGB[0, 0].tolist()))), RGB)
    np.testing.assert_array_equal(decoded(saved(GREY, "PNG", transparency=int(GREY[0, 0]))), grey(GREY))


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "BMP"])
def test_one_bit_images_are_black_and_white(kind: str) -> None:
    np.testing.assert_array_equal(decoded(saved(GREY > 99, kind)), grey((GREY > 99) * 255))


FRAMES: list[tuple[str, dict[str, object]]] = [("GIF", {}), ("PNG", {}), ("TIFF", {}), ("WEBP", {"lossless": True})]


@pytest.mark.parametrize(("kind", "options"), FRAMES)
def test_the_first_frame_counts(kind: str, options: dict[str, object]) -> None:
    second = Image.fromarray(OTHER)
    moving = saved(RGB, kind, save_all=True, append_images=[second], **options)
    assert getattr(Image.open(io.BytesIO(moving)), "n_frames", 1) == 2
    still = decoded(moving)
    np.testing.assert_array_equal(still, decoded(saved(RGB, kind, **options)))
    assert not np.array_equal(still, decoded(saved(second, kind, **options)))


def wide_files() -> list[tuple[str, NDArray[np.generic]]]:
    high = GREY.astype(np.uint16) * 257
    return [
        ("PNG", high),
        ("TIFF", high),
        ("PPM", high),
        ("TIFF", high.astype(">u2")),
        ("TIFF", high.astype(np.int32)),
        ("TIFF", GREY.astype(np.int32) - 1000),
        ("TIFF", GREY.astype(np.float32) / 255),
        ("TIFF", GREY.astype(np.float32) + 0.5),
        ("TIFF", np.full((4, 4), np.nan, np.float32)),
    ]


@pytest.mark.parametrize(("kind", "values"), wide_files())
def test_grey_values_that_pillow_would_clip_are_refused(kind: str, values: NDArray[np.generic]) -> None:
    """The original trains on what `convert` leaves of them: white, or black."""
    data = saved(values, kind)
    left = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))[..., 0]
    assert not np.array_equal(left, values)
    with pytest.raises(SampleError, match=rf"pixels from {values.min():g} to {values.max():g}, .*8 bits per channel"):
        decode_image(data)


@pytest.mark.parametrize(
    ("kind", "dtype"), [("PNG", "u2"), ("TIFF", "u2"), ("TIFF", ">u2"), ("TIFF", "i4"), ("TIFF", "f4")]
)
def test_wide_grey_values_that_fit_are_kept(kind: str, dtype: str) -> None:
    np.testing.assert_array_equal(decoded(saved(GREY.astype(dtype), kind)), grey(GREY))


def test_sixteen_bits_per_colour_become_the_upper_eight() -> None:
    high = RGB.astype(np.uint16) * 256 + 77
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in high)
    np.testing.assert_array_equal(decoded(png(14, 9, depth=16, colour=2, rows=rows)), RGB)


@pytest.mark.parametrize("pad", [True, False])
def test_one_pixel_fills_the_square(pad: bool) -> None:
    pixels = ImageProcessor(32, pad_to_square=pad)(saved(np.full((1, 1, 3), (200, 30, 90), np.uint8), "PNG"))
    assert (pixels == pixels[:, :1, :1]).all() and pixels[0, 0, 0] > pixels[2, 0, 0] > pixels[1, 0, 0]


WHOLE: list[tuple[str, dict[str, object]]] = [
    ("JPEG", {}),
    ("PNG", {}),
    ("GIF", {}),
    ("WEBP", {}),
    ("BMP", {}),
    ("TIFF", {}),
    ("TIFF", {"compression": "tiff_lzw"}),
    ("PPM", {}),
    ("JPEG2000", {}),
    ("TGA", {}),
]


@pytest.mark.parametrize("share", [0.0, 0.02, 0.4, 0.8])
@pytest.mark.parametrize(("kind", "options"), WHOLE)
def test_truncated_files_are_refused_in_one_line(kind: str, options: dict[str, object], share: float) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)
    data = saved(pixels, kind, **options)
    assert decode_image(data).size == (80, 60)
    with pytest.raises(SampleError, match=r"(broken image|not an image file).*; replace the file") as refused:
        decode_image(data[: int(len(data) * share)])
    assert "\n" not in str(refused.value)


UNREADABLE = {
    "SVG": b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"><rect width="9" height="9"/></svg>',
    "HEIC": b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(200),
    "PostScript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n%%EOF\n",
    "an HTML page": b"<!DOCTYPE html><html><body>404 not found</body></html>",
    "zeros": bytes(5000),
}


@pytest.mark.parametrize("name", UNREADABLE)
def test_other_formats_are_refused_in_one_line(name: str) -> None:
    said = r"\); replace the file" if name == "zeros" else rf"\), but {name}; .*"
    with pytest.raises(SampleError, match=rf"^not an image file that can be read \(JPEG, PNG, .*{said}$"):
        decode_image(UNREADABLE[name])


@settings(max_examples=120)
@given(st.sampled_from(WHOLE), st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), min_size=1, max_size=8))
def test_damaged_bytes_never_raise_anything_else(
    case: tuple[str, dict[str, object]], damage: list[tuple[float, int]]
) -> None:
    data = bytearray(saved(RGB, case[0], **case[1]))
    for share, value in damage:
        data[int(share * (len(data) - 1))] = value
    try:
        assert decode_image(bytes(data)).mode == "RGB"
    except SampleError as error:
        assert "\n" not in str(error)


def test_a_bomb_is_refused_with_both_values() -> None:
    bomb = png(60_000, 60_000, depth=8, colour=2, rows=bytes(50))
    with pytest.raises(SampleError, match=f"3600000000 pixels.* {MAX_IMAGE_PIXELS} pixels; shrink the image"):
        decode_image(bomb)


def test_the_limit_is_our_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    bomb = png(13_378, 13_378, depth=8, colour=2, rows=bytes(50))
    with pytest.raises(SampleError, match=f"13378 x 13378 = 178970884 pixels, more than .* {MAX_IMAGE_PIXELS}"):
        decode_image(bomb)


def test_pillow_told_to_accept_truncated_files_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    with pytest.raises(InputError, match="LOAD_TRUNCATED_IMAGES is True") as error:
        decode_image(saved(RGB, "PNG"))
    assert not isinstance(error.value, SampleError)  # it concerns every sample


def test_threads_decode_the_same_pixels() -> None:
    files = [saved(RGB, kind, **options) for kind, options in WHOLE] * 8
    expected = [decoded(file).tobytes() for file in files]
    with ThreadPoolExecutor(8) as pool:
        assert [found.tobytes() for found in pool.map(decoded, files)] == expected


CHILD = """
import json, resource, sys, warnings
from PIL import Image, ImageFile
import alignkd.vlm.families.mobilevlm.inputs.images as images
from alignkd.vlm.errors import ImageError

def state():
    return repr((Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES, ImageFile.MAXBLOCK, warnings.filters))

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024

decode = images.ImageProcessor(336, pad_to_square=False)
before, megabytes, found = state(), peak(), []
for path in sys.argv[1:]:
    with open(path, "rb") as file:
        try:
            found.append(str(decode(file.read()).shape))
        except ImageError as error:
            found.append(str(error))
print(json.dumps({"found": found, "grown": peak() - megabytes, "unchanged": before == state()}))
"""


def in_a_child(files: list[bytes], folder: Path) -> tuple[list[str], int, bool, str]:
    """What a fresh process says of the files, the MiB it grew by, whether settings stayed, and its stderr."""
    paths = [folder / str(number) for number in range(len(files))]
    for path, data in zip(paths, files, strict=True):
        path.write_bytes(data)
    command = [sys.executable, "-W", "default", "-c", CHILD, *map(str, paths)]
    child = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[5])
    report = json.loads(child.stdout)
    return report["found"], report["grown"], report["unchanged"], child.stderr


def resized_header(data: bytes, at: Callable[[bytes], int], layout: str, width: int, height: int) -> bytes:
    start = at(data)
    return data[:start] + struct.pack(layout, width, height) + data[start + struct.calcsize(layout) :]


def test_headers_that_lie_cost_no_memory_and_print_nothing(tmp_path: Path) -> None:
    side = 13_000  # below the limit, above the size of which Pillow warns
    lies = [
        png(60_000, 60_000, depth=8, colour=2, rows=bytes(50)),
        png(side, side, depth=8, colour=2, rows=bytes(50)),
        resized_header(saved(RGB, "BMP"), lambda data: 18, "<ii", side, side),
        resized_header(saved(RGB, "JPEG"), lambda data: data.index(b"\xff\xc0") + 5, ">HH", 60_000, 60_000),
        saved(Image.fromarray(RGB).quantize(8), "PNG", transparency=bytes(range(8))),
        saved(RGB, "PNG"),
    ]
    found, grown, unchanged, printed = in_a_child(lies, tmp_path)
    assert all("pixels" in text or "broken image" in text for text in found[:4]), found
    assert found[4:] == ["(3, 336, 336)"] * 2
    assert grown < 100 and unchanged and printed == ""


def test_a_line_of_pixels_costs_little_memory(tmp_path: Path) -> None:
    """Whole, 336 x 336000 pixels would be 450 MB in Pillow."""
    lines = [saved(np.zeros((1000, 1, 3), np.uint8), "PNG"), saved(np.zeros((1, 1000, 3), np.uint8), "PNG")]
    found, grown, _, printed = in_a_child(lines, tmp_path)
    assert found == ["(3, 336, 336)"] * 2 and grown < 250 and printed == ""
