"""Records with several images: how what belongs to each of them is told apart and stored.

A record holds one image's path, hash and bytes as they are, several images' as tuples. Targets of k > 1 images have a
leading axis k, and are stored as k times as many rows of the same columns: one image is stored as it always was.
"""

import itertools
import struct
from collections.abc import Sequence
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from alignkd.storage.codecs import get_codec
from alignkd.storage.codecs.base import Parts
from alignkd.storage.errors import StoreError
from alignkd.storage.record.encoded import EncodedArray, FloatArray

Item = TypeVar("Item", str, bytes)
Target = FloatArray | EncodedArray

# no image format begins so
MAGIC = b"\0IMAGES\0"


def every_one(value: Item | tuple[Item, ...] | None) -> tuple[Item, ...]:
    """None, one thing or several, as a tuple."""
    if value is None:
        return ()
    return value if isinstance(value, tuple) else (value,)


def joined_rows(parts: Parts) -> Parts:
    """Stored parts [k, n, ...] of a target as rows [k * n, ...]."""
    return {name: part.reshape(-1, *part.shape[2:]) for name, part in parts.items()}


def split_rows(parts: Parts, num_images: int) -> Parts:
    """The inverse of `joined_rows`."""
    return {name: part.reshape(num_images, len(part) // num_images, *part.shape[1:]) for name, part in parts.items()}


def of_each_image(target: Target) -> list[Target]:
    """The k targets of one image each in a target with a leading axis k."""
    if isinstance(target, EncodedArray):
        codec, parts = target.codec, target.parts
        return [EncodedArray(codec, {name: part[n] for name, part in parts.items()}) for n in range(len(parts[""]))]
    return list(target)


def vision_rows(every: Target, index: NDArray[np.uint16]) -> Target:
    """Embeddings [K, Dt] at `index` among all vision tokens, through all images.

    Args:
        every: [P, Dt], or [k, P, Dt] of several images. Encoded ones whose scale belongs to an image are decoded: the
            rows of several images share none.
    """
    if len(every.shape) == 2:
        return every[index]
    if not isinstance(every, EncodedArray):
        return every.reshape(-1, every.shape[-1])[index]
    if get_codec(every.codec).shared_parts:
        return every.decode().reshape(-1, every.shape[-1])[index]
    return EncodedArray(every.codec, joined_rows(every.parts))[index]


def pack_files(files: Sequence[bytes]) -> bytes:
    """Several image files as one: magic, their number (uint32), the length of each (uint64), their bytes.

    Numbers are little-endian. The inverse of `unpack_files`.
    """
    lengths = [len(file) for file in files]
    return MAGIC + struct.pack(f"<I{len(files)}Q", len(files), *lengths) + b"".join(files)


def unpack_files(packed: bytes, count: int) -> tuple[bytes, ...]:
    """The `count` image files again.

    Raises:
        StoreError: these are not so many packed files, or some bytes are missing.
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
            f"image_bytes: {len(packed)} bytes, but {count} image files of {sum(lengths)} bytes are announced; "
            "dump the sample again"
        )
    ends = np.cumsum([start, *lengths]).tolist() if count else []
    return tuple(packed[first:last] for first, last in itertools.pairwise(ends))
