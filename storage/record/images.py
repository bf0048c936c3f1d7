"""Targets and files of a record's k images: a tuple of k items in memory, as rows or one file in the store.

A target of k images is stored as the rows of all images, image by image. The files of several images are packed into
one.
"""

import itertools
import struct
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from alignkd.storage.codecs import get_codec
from alignkd.storage.codecs.base import Parts
from alignkd.storage.errors import StoreError
from alignkd.storage.record.encoded import EncodedArray, FloatArray, as_float32

Target = FloatArray | EncodedArray

# no image format starts with these bytes
MAGIC = b"\0IMAGES\0"


def joined_rows(parts: Parts) -> Parts:
    """The parts [k, n, ...] of a target as rows [k * n, ...]."""
    return {name: part.reshape(-1, *part.shape[2:]) for name, part in parts.items()}


def split_rows(parts: Parts, num_blocks: int) -> Parts:
    """The inverse of `joined_rows`."""
    return {name: part.reshape(num_blocks, len(part) // num_blocks, *part.shape[1:]) for name, part in parts.items()}


def joined_images(codec: str, images: Sequence[Parts]) -> Parts:
    """The parts of k images' targets [P_i, ...] as rows: all images one after the other, shared parts a row each."""
    shared = get_codec(codec).shared_parts
    if len(images) == 1:
        return {name: part[None] if name in shared else part for name, part in images[0].items()}
    return {
        name: np.stack([parts[name] for parts in images])
        if name in shared
        else np.concatenate([parts[name] for parts in images])
        for name in images[0]
    }


def split_images(codec: str, rows: Parts, tokens_of_image: Sequence[int]) -> list[Parts]:
    """The inverse of `joined_images`."""
    shared = get_codec(codec).shared_parts
    if len(tokens_of_image) == 1:
        return [{name: part[0] if name in shared else part for name, part in rows.items()}]
    ends = [0, *itertools.accumulate(tokens_of_image)]
    return [
        {name: part[n] if name in shared else part[ends[n] : ends[n + 1]] for name, part in rows.items()}
        for n in range(len(tokens_of_image))
    ]


def vision_rows(every: Sequence[Target], index: NDArray[np.uint16]) -> Target:
    """Embeddings [K, Dt] at `index` among the vision tokens of all images.

    Args:
        every: [P_i, Dt] of each image. Where the codec has one scale per image, rows of several images are decoded,
            because they share no scale.
        index: counted through all images.
    """
    if len(every) == 1:
        return every[0][index]
    first = every[0]
    if not isinstance(first, EncodedArray):
        floats: FloatArray = np.concatenate(list(every))[index]
        return floats
    if get_codec(first.codec).shared_parts:
        decoded: NDArray[np.float32] = np.concatenate([as_float32(target) for target in every])[index]
        return decoded
    rows = joined_images(first.codec, [target.parts for target in every if isinstance(target, EncodedArray)])
    return EncodedArray(first.codec, rows)[index]


def all_images_float32(every: Sequence[Target]) -> NDArray[np.float32]:
    """The decoded targets of all images one after the other, float32 [P, ...]."""
    return as_float32(every[0]) if len(every) == 1 else np.concatenate([as_float32(target) for target in every])


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
