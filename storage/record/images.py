"""Targets and files of a record's k images: as an axis k or a tuple in memory, as rows or one file in the store.

A target [k, n, ...] is stored as k * n rows of its columns, so a record with one image has the same rows as if it had
no axis k. The files of several images are packed into one.
"""

import itertools
import struct
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from alignkd.storage.codecs import get_codec
from alignkd.storage.codecs.base import Parts
from alignkd.storage.errors import StoreError
from alignkd.storage.record.encoded import EncodedArray, FloatArray

Target = FloatArray | EncodedArray

# no image format starts with these bytes
MAGIC = b"\0IMAGES\0"


def joined_rows(parts: Parts) -> Parts:
    """The parts [k, n, ...] of a target as rows [k * n, ...]."""
    return {name: part.reshape(-1, *part.shape[2:]) for name, part in parts.items()}


def split_rows(parts: Parts, num_images: int) -> Parts:
    """The inverse of `joined_rows`."""
    return {name: part.reshape(num_images, len(part) // num_images, *part.shape[1:]) for name, part in parts.items()}


def of_each_image(target: Target) -> list[Target]:
    """The targets of each image, without the axis k."""
    if isinstance(target, EncodedArray):
        codec, parts = target.codec, target.parts
        return [EncodedArray(codec, {name: part[n] for name, part in parts.items()}) for n in range(len(parts[""]))]
    return list(target)


def vision_rows(every: Target, index: NDArray[np.uint16]) -> Target:
    """Embeddings [K, Dt] at `index` among the vision tokens of all images.

    Args:
        every: [k, P, Dt]. Where the codec has one scale per image, rows of several images are decoded, because they
            share no scale.
        index: counted through all images.
    """
    if not isinstance(every, EncodedArray):
        return every.reshape(-1, every.shape[-1])[index]
    if every.num_rows > 1 and get_codec(every.codec).shared_parts:
        return every.decode().reshape(-1, every.shape[-1])[index]
    return EncodedArray(every.codec, joined_rows(every.parts))[index]


def pack_files(files: Sequence[bytes]) -> bytes:
    """Several image files as one: magic, their number (uint32), the length of each (uint64), their contents.

    Numbers are little-endian. The inverse of `unpack_files`.
    """
    lengths = [len(file) for file in files]
    return MAGIC + struct.pack(f"<I{len(files)}Q", len(files), *lengths) + b"".join(files)


def unpack_files(packed: bytes, count: int) -> tuple[bytes, ...]:
    """The `count` image files that `pack_files` packed.

    Raises:
        StoreError: the content is not that of `count` packed files, or some bytes are missing.
    """
    begin = len(MAGIC) + 4
    found = int.from_bytes(packed[len(MAGIC) : begin], "little")
    table = packed[begin : begin + 8 * count]
    if not packed.startswith(MAGIC) or found != count or len(table) != 8 * count:
        raise StoreError(f"image_bytes: {len(packed)} bytes are not {count} image files; dump the sample again")
    lengths = struct.unpack(f"<{count}Q", table)
    start = begin + 8 * count
    if start + sum(lengths) != len(packed):
        raise StoreError(
            f"image_bytes: {len(packed)} bytes, but {count} image files of {sum(lengths)} bytes are listed; "
            "dump the sample again"
        )
    ends = np.cumsum([start, *lengths]).tolist() if count else []
    return tuple(packed[first:last] for first, last in itertools.pairwise(ends))
