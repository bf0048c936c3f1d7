"""The bytes of one zarr v3 sharding file, written append-only and read with pread.

Layout (zarr core spec, codec `sharding_indexed`, index at the end): inner chunks of a fixed shape, each as
little-endian bytes and their crc32c (4 bytes); then (offset, bytes) of every chunk of the grid in C order, as two
uint64, all ones for a missing chunk (= zeros); then the crc32c of that index.

The chunk grid spans rows and, for arrays of variable width, blocks of columns. Padding columns are missing chunks: they
take no time and no room.
"""

import math

from alignkd.storage.schema.columns.shard import Column
from alignkd.storage.schema.commit_record import ArrayLayout

CRC_BYTES = 4
# an entry of the index: offset and length of a chunk
PLACE_BYTES = 16
# file name of every description; the group's attributes with the crc32c of each array's chunks and of its index, and
# with the parts of each target
METADATA = "zarr.json"
CHECKSUMS = "crc32c"
TARGETS = "targets"
EMPTY_GROUP = b'{\n  "attributes": {},\n  "zarr_format": 3,\n  "node_type": "group"\n}'
MISSING = 2**64 - 1


def data_file(column: Column) -> str:
    """Path of a column's only chunk file, relative to the shard's folder."""
    return f"{column.name}/{'.'.join(['c'] + ['0'] * (1 + len(column.row_shape)))}"


def index_bytes(layout: ArrayLayout) -> int:
    """Length of the index at the end of a file."""
    # math.prod, not numpy: a hostile shape must not overflow
    return math.prod(layout.grid) * PLACE_BYTES + CRC_BYTES
