"""The fixtures of `support/made_records.py`."""

from made_records import assert_same, make_manifest, make_record, small_store, tree_bytes, write_store

__all__ = ["assert_same", "make_manifest", "make_record", "small_store", "tree_bytes", "write_store"]
