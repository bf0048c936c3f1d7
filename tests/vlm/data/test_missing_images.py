"""An image that is not there: the reason names a file that differs only in its spelling, an address, a link."""

import unicodedata
from pathlib import Path

import pytest

from alignkd.vlm.data.images import MissingImageError, open_image, read_image_bytes
from alignkd.vlm.errors import SampleError

COMPOSED, DECOMPOSED = unicodedata.normalize("NFC", "café.png"), unicodedata.normalize("NFD", "café.png")


@pytest.fixture
def images(tmp_path: Path) -> Path:
    for name in ("sub/coffee.png", "cat.JPG", "dog.jpg", "my photo.png", "COCO/A.png", "long.jpeg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"pixels")
    (tmp_path / "gone.png").symlink_to("/nowhere/gone.png")
    return tmp_path


@pytest.mark.parametrize(
    ("image", "said"),
    [
        ("sub\\coffee.png", "the path has backslashes; a file with / in their place exists: write sub/coffee.png in"),
        ("sub\\none.png", "the path has backslashes, write it with /; restore the file"),
        ("cat.jpg", "a file whose name differs only in upper and lower case exists: write cat.JPG in the data, or"),
        ("Dog.JPG", "differs only in upper and lower case exists: write dog.jpg"),
        ("coco/a.png", "restore the file"),
        ("dog.jpg ", "a file without the spaces exists: write dog.jpg"),
        ("my%20photo.png", "with percent codes decoded exists: write my photo.png"),
        ("long.jpg", "a file with another extension exists: write long.jpeg"),
        ("gone.png", "restore the file that the link leads to (/nowhere/gone.png)"),
        ("none.png", "restore the file"),
        ("dog.jpg/x.png", "restore the file"),
        ("..\\dog.jpg", "the path has backslashes, write it with /; restore the file"),
    ],
)
def test_what_is_there_instead_is_named(images: Path, image: str, said: str) -> None:
    with pytest.raises(MissingImageError) as refused:
        read_image_bytes(images, image)
    path, _, rest = str(refused.value).partition(": image cannot be read (")
    assert path == f"{images}/{image}" and said in rest.partition("); ")[2]
    assert "\n" not in str(refused.value)


def test_names_that_look_the_same_are_told_apart(tmp_path: Path) -> None:
    for there, asked, shown in ((COMPOSED, DECOMPOSED, "café.png"), (DECOMPOSED, COMPOSED, "'cafe\\u0301.png'")):
        (tmp_path / there).write_bytes(b"pixels")
        with pytest.raises(MissingImageError) as refused:
            open_image(tmp_path, asked)
        said = f"a file whose name differs only in Unicode normalisation exists: write {shown} in the data"
        assert said in str(refused.value)
        (tmp_path / there).unlink()


@pytest.mark.parametrize(
    ("image", "said"),
    [
        (
            "https://x.org/a.png",
            "https://x.org/a.png: an address, expected a path; download the image and name the file",
        ),
        ("file:///data/a.png", "file:///data/a.png: an address"),
        ("s3://bucket/a.png", "s3://bucket/a.png: an address"),
        (
            "data:image/png;base64,iVBORw0KGgo",
            "the content of an image (33 characters), expected a path; write it to a",
        ),
        ("/9j/" + "A" * 100_000, "/9j/AAAAAAAAAAAAAAAAAAAAAAAAAA...: the content of an image (100004 characters)"),
    ],
)
def test_what_is_no_path_is_named_as_given(images: Path, image: str, said: str) -> None:
    with pytest.raises(SampleError) as refused:
        open_image(images, image)
    assert said in str(refused.value) and str(images) not in str(refused.value) and len(str(refused.value)) < 200


@pytest.mark.parametrize("name", ["a\0b.png", "\ud800.png"])
def test_a_name_that_no_file_can_have_is_one_line(name: str, tmp_path: Path) -> None:
    with pytest.raises(SampleError, match="is not the name of a file") as caught:
        open_image(tmp_path, name)
    assert str(caught.value).isprintable()
