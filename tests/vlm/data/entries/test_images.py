"""Images of an entry: paths inside the image folder, and pictures in the data file itself."""

import base64
import hashlib
import io
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from alignkd.vlm.data.entries import images as images_module
from alignkd.vlm.data.entries.entry import sample_of_entry
from alignkd.vlm.data.entries.images import extension_of, image_of
from alignkd.vlm.data.entries.reading import EntryReading
from alignkd.vlm.data.images import image_files
from alignkd.vlm.data.sample import Sample
from alignkd.vlm.errors import SampleError

FORMATS = {
    "JPEG": "jpg",
    "PNG": "png",
    "GIF": "gif",
    "WEBP": "webp",
    "BMP": "bmp",
    "TIFF": "tif",
    "PPM": "ppm",
    "JPEG2000": "jp2",
    "AVIF": "avif",
    "ICO": "ico",
}


def picture(form: str = "PNG") -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (20, 20), "red").save(stream, form)
    return stream.getvalue()


PNG = picture()
TEXT = base64.b64encode(PNG).decode()


def read(image: Any, folder: Path | None = Path("/data/images")) -> Sample:
    entry = {"image": image, "conversations": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}
    return sample_of_entry(0, entry, EntryReading(images=folder))


def problem_of(image: Any, folder: Path | None = Path("/data/images")) -> str:
    problem = read(image, folder).problem or ""
    assert "\n" not in problem and len(problem) < 300
    return problem


@pytest.mark.parametrize("form", FORMATS)
def test_pictures_are_recognised_by_their_bytes(form: str) -> None:
    content = picture(form)
    assert extension_of(content) == FORMATS[form]
    name = f"{hashlib.sha256(content).hexdigest()[:12]}.{FORMATS[form]}"
    text = base64.b64encode(content).decode()
    lines = "\n".join(text[start : start + 76] for start in range(0, len(text), 76))
    for image in (text, lines, f"\n {text}", f"data:image/{form.lower()};base64,{text}", {"bytes": text, "path": None}):
        sample = read(image)
        assert sample.images == (f"base64-{name}",) and image_files(sample) == (content,)
    for image in (content, [content], {"bytes": content, "path": None}):
        sample = read(image)
        assert sample.images == (f"image-{name}",) and image_files(sample) == (content,)


def test_a_picture_in_a_struct_keeps_its_name() -> None:
    assert read({"bytes": PNG, "path": "a/b.png"}).images == ("a/b.png",)
    assert read({"bytes": PNG, "path": "https://x/a.png"}).contents == (PNG,)
    assert read({"bytes": PNG, "path": "a\0b"}).images[0].startswith("image-")
    sample = read({"bytes": None, "path": "/data/images/a.png"})
    assert (sample.images, sample.contents) == (("a.png",), ())
    sample = read([{"bytes": PNG, "path": "a.png"}, "b.png"])
    assert sample.images == ("a.png", "b.png") and sample.contents == (PNG, None)
    assert read({"bytes": None, "path": None}).images == ()


@pytest.mark.parametrize(
    ("path", "relative"),
    [
        ("/data/images/coco/a.png", "coco/a.png"),
        ("//data/images/./coco/x/../a.png", "coco/a.png"),
        ("file:///data/images/my%20photo.png", "my photo.png"),
        ("file://localhost/data/images/a.png", "a.png"),
        ("file://elsewhere/data/images/a.png", "file://elsewhere/data/images/a.png"),
        ("coco/a.png", "coco/a.png"),
        ("coco/../a.png", "coco/../a.png"),
        ("https://x.org/a.png", "https://x.org/a.png"),
        ("s3://bucket/a.png", "s3://bucket/a.png"),
        ("A" * 80, "A" * 80),
    ],
)
def test_absolute_paths_become_relative(path: str, relative: str) -> None:
    assert read(path).images == (relative,)
    assert read(path, None).images == (path,)


def test_the_image_folder_may_be_relative_and_a_link(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "a.png").write_bytes(PNG)
    (tmp_path / "images").symlink_to("real")
    monkeypatch.chdir(tmp_path)
    sample = read(str(tmp_path / "images" / "a.png"), Path("images"))
    assert sample.images == ("a.png",) and image_files(sample) == (PNG,)
    # links are not followed: the folder that was named decides
    assert "outside the image folder" in problem_of(str(tmp_path / "real" / "a.png"), Path("images"))


@pytest.mark.parametrize(
    ("image", "said"),
    [
        ("/data/other/a.png", "'image' is '/data/other/a.png', outside the image folder /data/images; set data.images"),
        ("/data/images", "outside the image folder"),
        ("/data/images/../a.png", "outside the image folder"),
        ("/data/images2/a.png", "outside the image folder"),
        ("file:///etc/passwd", "'image' is 'file:///etc/passwd', outside the image folder"),
        ("data:video/mp4;base64,AAAA", "'image' is a data: URL of video/mp4, expected an image in base64"),
        ("data:image/svg+xml,<svg/>", "'image' is a data: URL of image/svg+xml, expected an image in base64"),
        ("data:image/png;base64,AA*A", "'image' is broken base64"),
        ("data:image/png;base64,", "'image' is an image without bytes"),
        ("A".join((TEXT[:80], TEXT[80:84])), "'image' is broken base64"),
        ({"bytes": "a.png", "path": None}, "'image' is broken base64"),
        ({"bytes": 3, "path": None}, "'image' has bytes that are 3, expected a path, the bytes of an image"),
        ({"url": "a.png"}, "'image' is {'url': 'a.png'}, expected a path"),
        (["a.png", None], "'image' is None, expected a path"),
        (3, "'image' is 3, expected a path"),
    ],
)
def test_images_that_are_refused(image: Any, said: str) -> None:
    assert said in problem_of(image)


def test_the_size_in_base64_is_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images_module, "MAX_IMAGE_BYTES", len(PNG) - 3)
    assert f"in base64, more than {len(PNG) - 3}; write it to a file" in problem_of(TEXT)
    assert read(PNG).problem is None


@pytest.mark.parametrize("image", [None, [], [None], [None, None], {"bytes": None, "path": None}, [{"path": None}]])
def test_lists_of_nulls_are_no_images(image: Any) -> None:
    sample = read(image)
    assert (sample.problem, sample.images, sample.turns[0].value) == (None, (), "q")


def test_an_image_under_both_keys() -> None:
    said = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    for value in ("a.png", PNG, TEXT):
        assert sample_of_entry(0, {"image": value, "images": [value], "messages": said}).problem is None
    differ = sample_of_entry(0, {"image": "a.png", "images": [PNG], "messages": said}).problem
    assert differ is not None and differ.startswith("'image' is 'a.png', 'images' is 'image-")


@given(
    st.text(max_size=100)
    | st.from_regex(r"data:(image/png;base64|[a-z/;]{0,20}),?[A-Za-z0-9+/=]{0,40}", fullmatch=True)
    | st.binary()
)
def test_any_value_is_an_image_or_refused(value: str | bytes) -> None:
    try:
        image = image_of("'image'", value, EntryReading(images=Path("/data/images")))
    except SampleError as error:
        assert "\n" not in str(error) and str(error).encode()
        return
    if isinstance(value, bytes):
        assert image.content == value
    else:  # short texts are base64 in data: URLs alone
        assert image.content is None or value.startswith("data:image/")
        assert image.content is not None or image.name == value or value.startswith(("/data/images/", "file:"))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ([{"type": "video", "video": "a.mp4"}], "turn 0 has a part of type 'video', expected text or image; remove"),
        ([{"type": "input_audio", "input_audio": {}}], "a part of type 'input_audio', expected text or image"),
        ([{"type": "tool_use", "name": "x"}], "a part of type 'tool_use'"),
        ([{"video": "a.mp4"}], "a part of type 'video'"),
        ([{"type": "text"}], "a part of type 'text', expected text or image"),
        ([3], "turn 0 has a part that is 3, expected a text or an object"),
        ([], "turn 0 has no text: its content is []"),
        (3, "turn 0 has no text: its content is 3"),
        ([{"type": "image", "file_id": "x"}], "an image part with 'file_id', which names no image that can be read"),
        ([{"type": "image", "image": "a.png", "url": "b.png"}], "an image part with 'image' and 'url'; keep one"),
        ([{"type": "image", "index": -1}], "an image part with index -1, expected 0 or more"),
        ([{"type": "image", "index": 1}], "shows image 2 of the entry, which has 1; name it under 'images'"),
        ([{"type": "image", "image": "a.png", "text": "a cat"}], "an image part with a text; write the text as a part"),
        ([{"image": "a.png", "text": "a cat"}], "an image part with a text; write the text as a part of its own"),
        (
            [{"type": "text", "text": "q", "image": "a.png"}],
            "a text part with 'image'; write both as parts of their own",
        ),
        ([{"type": "text", "text": "q", "video": "a.mp4"}], "a text part with 'video'; write both as parts of their"),
        ([{"type": "image", "text": "a cat"}], "an image part with a text; write the text as a part of its own"),
        (
            [{"type": "image", "image": "b.png"}],
            "image 'a.png' of the entry is shown by no turn; write <image> exactly",
        ),
        ([{"type": "image", "image": "/etc/b.png"}], "an image part is '/etc/b.png', outside the image folder"),
        (
            "<image_1> what?",
            "turn 0 holds '<image_1>', which other programs replace by media, but the sample has no <i",
        ),
    ],
)
def test_contents_that_are_refused(content: Any, said: str) -> None:
    messages = [{"role": "user", "content": content}, {"role": "assistant", "content": "a"}]
    entry = {"images": ["a.png"], "messages": messages}
    problem = sample_of_entry(0, entry, EntryReading(images=Path("/data/images"))).problem or ""
    assert said in problem and "\n" not in problem


def test_nulls_of_other_parts_are_nothing() -> None:
    null = {"bytes": None, "path": None}
    parts = [{"type": "image", "image": null, "text": None}, {"type": "text", "text": "q", "image": null, "video": []}]
    messages = [{"role": "user", "content": parts}, {"role": "assistant", "content": "a"}]
    sample = sample_of_entry(0, {"images": ["a.png"], "messages": messages})
    assert (sample.problem, sample.images, sample.turns[0].value) == (None, ("a.png",), "<image>\nq")


def test_an_entry_may_list_the_images_of_its_parts_again() -> None:
    messages = [
        {"role": "user", "content": [{"type": "image", "image": "a.png"}, {"type": "text", "text": "q"}]},
        {"role": "assistant", "content": "a"},
    ]
    sample = sample_of_entry(0, {"images": ["a.png"], "messages": messages})
    assert (sample.images, sample.problem) == (("a.png",), None)
