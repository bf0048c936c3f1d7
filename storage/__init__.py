"""The store of cached teacher targets: what a record is, how it lies on disk, how it stays correct.

Knows no torch and no model. Start at `record.py` (the logical record), then `manifest.py` (what a store
promises), `writer.py` / `reader.py` (the interface) and `sharding_layout.py` (the bytes).
"""

from alignkd.storage.codecs.settings import PROFILES, profile_codecs
from alignkd.storage.errors import CorruptStoreError, RecordError, StoreError
from alignkd.storage.read.listing import ShardInfo, list_shards
from alignkd.storage.read.store import StoreReader
from alignkd.storage.record.record import EncodedArray, HiddenStates, Record, SampledLogits, TruncatedLogits, as_float32
from alignkd.storage.schema.manifest import Codecs, LogitsCodec, Manifest, Shapes, check_fingerprint
from alignkd.storage.schema.order import SampleOrder, permutation
from alignkd.storage.tools.verify.verify import Problem, VerifyReport, verify_store
from alignkd.storage.write.store import ShardWriter, StoreWriter, open_writer

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
    "open_writer",
    "permutation",
    "profile_codecs",
    "verify_store",
]
