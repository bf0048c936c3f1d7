"""The image files of a sample: in the image folder, or inside the data file."""

import hashlib
from collections.abc import Sequence
from pathlib import Path, PurePath
from typing import BinaryIO

from alignkd.disk.opening import open_regular
from alignkd.vlm.data.missing_images import LONGEST_PATH, address_problem, advice
from alignkd.vlm.data.sample import Sample
from alignkd.vlm.errors import SampleError
from alignkd.vlm.patience import patient


class MissingImageError(SampleError):
    """A sample's image file is not there, or cannot be read."""


def open_image(images: Path, image: str) -> BinaryIO:
    """A sample's image file, open for reading.

    Links in the image folder are followed, because large image sets are often linked into place by the folder's
    owner. Paths in the data set may not leave the folder.

    Raises:
        MissingImageError: no such file, or it cannot be opened.
        SampleError: a path that leaves the image folder, or an address or image content instead of a path.
    """
    if len(image) > LONGEST_PATH:
        raise SampleError(address_problem(image))
    path, named = images / image, PurePath(image)
    if named.is_absolute() or ".." in named.parts:
        raise SampleError(f"image path {image!r} leaves the image folder {images}; use a relative path inside it")
    try:
        return open_regular(path)
    except ValueError as error:  # a zero byte, or half of a surrogate pair
        raise SampleError(f"image path {image!a:.200} is not the name of a file; correct the data") from error
    except OSError as error:
        if problem := address_problem(image):
            raise SampleError(problem) from error
        step = (
            advice(images, image) if isinstance(error, FileNotFoundError | NotADirectoryError) else "restore the file"
        )
        raise MissingImageError(f"{path}: image cannot be read ({error.strerror}); {step}") from error


@patient
def read_image_bytes(images: Path, image: str) -> bytes:
    """The bytes of a sample's image file.

    Raises:
        SampleError: as `open_image`; MissingImageError also if reading fails.
        TransientReadError: the file system did not respond for about a minute.
    """
    with open_image(images, image) as stream:
        try:
            return stream.read()
        except OSError as error:
            where = images / image
            raise MissingImageError(f"{where}: image cannot be read ({error.strerror}); restore the file") from error


def read_images(folder: Path | None, images: Sequence[str]) -> tuple[bytes, ...]:
    """The bytes of a sample's image files, in order.

    Args:
        folder: the image folder; not None if there are any images.

    Raises:
        SampleError: as `read_image_bytes`.
    """
    assert folder is not None or not images
    return tuple(read_image_bytes(folder, image) for image in images if folder is not None)


def image_files(sample: Sample) -> tuple[bytes, ...]:
    """The bytes of a sample's image files, in order.

    Raises:
        SampleError: as `read_image_bytes`.
    """
    contents = sample.contents or (None,) * len(sample.images)
    return tuple(
        read_images(sample.folder, [image])[0] if content is None else content
        for image, content in zip(sample.images, contents, strict=True)
    )


def image_hashes(files: Sequence[bytes]) -> tuple[str, ...]:
    """sha256 (hex) of each image file."""
    return tuple(hashlib.sha256(file).hexdigest() for file in files)
