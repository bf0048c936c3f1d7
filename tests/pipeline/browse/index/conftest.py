"""Fixtures of `support/made_records.py`, with fewer columns: every column of a zarr shard is a file to write."""

from collections.abc import Callable
from typing import Any

import pytest
from made_records import make_manifest as make_large_manifest
from made_records import make_record, tree_bytes, write_store

from alignkd.storage import Codecs, LogitsCodec, Manifest

__all__ = ["make_large_manifest", "make_manifest", "make_record", "tree_bytes", "write_store"]

CODECS = Codecs(attention="float16", vision_top="none", vision_all="none", logits=LogitsCodec(kind="topk", top_k=3))


@pytest.fixture(scope="session")
def make_manifest(make_large_manifest: Any) -> Callable[..., Manifest]:
    """`make_manifest(...)` of a store without vision embeddings."""

    def make(**fields: Any) -> Manifest:
        manifest: Manifest = make_large_manifest(**{"codecs": CODECS} | fields)
        return manifest

    return make
