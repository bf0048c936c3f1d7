"""Checksums; the one module that imports google_crc32c.

crc32c protects chunks and small files: it is fast enough to verify on every read. It cannot identify a file of chunks
that each end in their own crc32c: data followed by its crc leaves the same state for any data, so all such files of one
size have the same crc32c. Files of a shard are identified by sha256.
"""

import hashlib
import os
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
from numpy.typing import NDArray

from alignkd.disk.opening import regular_descriptor

READ_BYTES = 1 << 20


def crc32c(buffer: bytes | NDArray[Any], start: int = 0) -> int:
    """crc32c of contiguous bytes; `start` is the checksum of the bytes before them."""
    return int(google_crc32c.extend(start, buffer))


def file_sha256(path: Path) -> str:
    """sha256 of a whole file, hex."""
    with os.fdopen(regular_descriptor(path), "rb", buffering=0) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def file_crc32c(path: Path) -> int:
    """crc32c of a whole file, read a mebibyte at a time."""
    buffer = np.empty(READ_BYTES, np.uint8)
    checksum = 0
    with os.fdopen(regular_descriptor(path), "rb", buffering=0) as file:
        while count := file.readinto(buffer.data):
            checksum = crc32c(buffer[:count], checksum)
    return checksum
