"""The store of cached teacher targets: what a record is, how it lies on disk, how it stays correct.

Knows no torch and no model. Start at `record.py` (the logical record), then `manifest.py` (what a store
promises), `writer.py` / `reader.py` (the interface) and `sharding_layout.py` (the bytes).
"""

from storage.errors import CorruptStoreError, RecordError, StoreError
from storage.manifest import Codecs, LogitsCodec, Manifest, Shapes, check_fingerprint
from storage.order import SampleOrder, permutation
from storage.reader import StoreReader
from storage.record import Record, TruncatedLogits
from storage.shard_listing import ShardInfo, list_shards
from storage.verify import Problem, VerifyReport, verify_store
from storage.writer import ShardWriter, StoreWriter

__all__ = [
    "Codecs",
    "CorruptStoreError",
    "LogitsCodec",
    "Manifest",
    "Problem",
    "Record",
    "RecordError",
    "SampleOrder",
    "Shapes",
    "ShardInfo",
    "ShardWriter",
    "StoreError",
    "StoreReader",
    "StoreWriter",
    "TruncatedLogits",
    "VerifyReport",
    "check_fingerprint",
    "list_shards",
    "permutation",
    "verify_store",
]
