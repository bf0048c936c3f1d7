"""The store of cached teacher targets: what a record is, how it lies on disk, how it stays correct.

Knows no torch and no model. Start at `record.py` (the logical record), then `manifest.py` (what a store
promises), `writer.py` / `reader.py` (the interface) and `sharding_layout.py` (the bytes).
"""

from storage.codec_settings import PROFILES, profile_codecs
from storage.errors import CorruptStoreError, RecordError, StoreError
from storage.manifest import Codecs, LogitsCodec, Manifest, Shapes, check_fingerprint
from storage.order import SampleOrder, permutation
from storage.reader import StoreReader
from storage.record import EncodedArray, HiddenStates, Record, SampledLogits, TruncatedLogits, as_float32
from storage.shard_listing import ShardInfo, list_shards
from storage.verify import Problem, VerifyReport, verify_store
from storage.writer import ShardWriter, StoreWriter

__all__ = [
    "PROFILES",
    "Codecs",
    "CorruptStoreError",
    "EncodedArray",
    "HiddenStates",
    "LogitsCodec",
    "Manifest",
    "Problem",
    "Record",
    "RecordError",
    "SampleOrder",
    "SampledLogits",
    "Shapes",
    "ShardInfo",
    "ShardWriter",
    "StoreError",
    "StoreReader",
    "StoreWriter",
    "TruncatedLogits",
    "VerifyReport",
    "as_float32",
    "check_fingerprint",
    "list_shards",
    "permutation",
    "profile_codecs",
    "verify_store",
]
