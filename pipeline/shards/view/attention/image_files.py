"""The image files of a record: inside the store, or in a folder, where only the content that the teacher saw is taken.

A store may come from a stranger and name any file. So no other content than that with the stored sha256 is decoded or
shown.
"""

import hashlib
import os
from pathlib import Path

from alignkd.storage.record.record import Record
from alignkd.storage.schema.manifest import Manifest
from alignkd.vlm.data.images import MissingImageError, open_image
from alignkd.vlm.errors import SampleError

# larger files are not read, as a store may name any file
MAX_FILE_BYTES = 1 << 30


def image_folder(manifest: Manifest, record: Record, given: Path | None) -> Path | None:
    """The folder of a record's images: the given one, else the one from which the dump read them, if it is known."""
    if given is not None or manifest.read_from is None:
        return given
    return manifest.read_from.image_folder(record.index)


def image_file(record: Record, number: int, images: Path | None) -> bytes:
    """The content of one image file of a record.

    Args:
        number: number of the image in the record.
        images: folder of the images; None if it is not known.

    Raises:
        SampleError: it is not there, cannot be read, or is not the image that the teacher saw.
    """
    image, sha256 = record.images[number], record.image_sha256[number]
    if record.image_bytes:
        content = record.image_bytes[number]
    elif images is None:
        raise SampleError(f"the store contains only the path of {image}; give the folder of the images by --images")
    else:
        content = _read(images, image)
    if (found := hashlib.sha256(content).hexdigest()) != sha256:
        raise SampleError(
            f"image {image}: sha256 is {found[:12]}, the teacher saw {sha256[:12]}; "
            "give the folder with the original images"
        )
    return content


def image_files(record: Record, images: Path | None) -> tuple[bytes, ...]:
    """The content of every image file of a record; see `image_file`."""
    return tuple(image_file(record, number, images) for number in range(record.num_images))


def _read(images: Path, image: str) -> bytes:
    try:
        stream = open_image(images, image)
    except MissingImageError as error:
        raise SampleError(f"{error}, or give the folder of the images by --images") from error
    with stream:
        size = os.fstat(stream.fileno()).st_size
        if size > MAX_FILE_BYTES:
            raise SampleError(
                f"image {image}: has {size} bytes, more than {MAX_FILE_BYTES}; give the folder with the original images"
            )
        try:
            # not to the end: a file of /proc may have no end, whatever its size says
            return stream.read(size)
        except OSError as error:
            raise SampleError(f"{images / image}: image cannot be read ({error.strerror}); restore the file") from error
