"""Fixtures of `support/made_records.py`."""

from made_records import make_manifest, make_record, tree_bytes, write_store

__all__ = ["make_manifest", "make_record", "tree_bytes", "write_store"]
