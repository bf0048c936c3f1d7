"""The store of cached teacher targets: records, their bytes on disk, and how they stay correct.

Imports neither torch nor a model. Start with `record/record.py` (the logical record), then `schema/manifest.py` (the
settings of a store), `write/store.py` and `read/store.py` (the interface) and `layouts/` (the bytes).

Each room imports only rooms below it; `lint-imports` checks the order:

    tools      verify, compare, merge, convert, collect garbage
    write      shards, committed whole or not at all          read   records by position
    places     the files of a store at a path or URL
    layouts    zarr and tar shards
    remote     buckets and web servers
    schema     manifest, commit records, columns, plan
    logits, record, codecs
    files      folders, locks, exclusive creation, checksums
    errors
"""

from alignkd.storage.codecs.settings import PROFILES, profile_codecs
from alignkd.storage.errors import CorruptStoreError, RecordError, StoreError
from alignkd.storage.read.listing import ShardInfo, list_shards
from alignkd.storage.read.store import StoreReader
from alignkd.storage.record.record import EncodedArray, HiddenStates, Record, SampledLogits, TruncatedLogits, as_float32
from alignkd.storage.schema.manifest import Codecs, LogitsCodec, Manifest, Shapes
from alignkd.storage.schema.manifest_checks import check_fingerprint
from alignkd.storage.schema.order import MixedOrder, OrderPart, SampleOrder, permutation
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
    "MixedOrder",
    "OrderPart",
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
