"""The bytes of one zarr v3 sharding file, written append-only and read with pread.

Layout (zarr core spec, codec `sharding_indexed`, index at the end): inner chunks of a fixed shape, each
little-endian bytes and their crc32c (4 bytes); then for every chunk of the grid, in C order, (offset, bytes)
as two uint64, all ones for a chunk that is not there (= zeros); then the crc32c of that index.

Our chunk grid spans rows and, for arrays whose width varies, blocks of columns: padding columns are chunks
that are not there, so neither writer nor disk pays for them.
"""

import math

from alignkd.storage.schema.columns import Column
from alignkd.storage.schema.commit_record import ArrayLayout

CRC_BYTES = 4
# offset and length of a chunk in the index
PLACE_BYTES = 16
# file name of every description, and the group's attribute with the crc32c of each array's chunks and of its index
METADATA = "zarr.json"
CHECKSUMS = "crc32c"
MISSING = 2**64 - 1


def data_file(column: Column) -> str:
    """Path of a column's only chunk file, relative to the shard's folder."""
    return f"{column.name}/{'.'.join(['c'] + ['0'] * (1 + len(column.row_shape)))}"


def index_bytes(layout: ArrayLayout) -> int:
    """Length of the index at the end of a file."""
    # math.prod, not numpy: a hostile shape must not overflow
    return math.prod(layout.grid) * PLACE_BYTES + CRC_BYTES
