"""Stores of schema 3 from before stores had sources and additions are read, resumed and grown.

`data/schema3/make_stores.py` made the stores and noted what the reader of that time returned.
"""

import json
import tarfile
from pathlib import Path
from typing import Any

import pytest

from alignkd.storage import Manifest, StoreReader, open_writer, verify_store
from alignkd.storage.read.listing import list_store
from alignkd.storage.schema.manifest import FILE_NAME
from alignkd.storage.schema.sealed_json import seal

DATA = Path(__file__).parent / "data" / "schema3"
EXPECTED: dict[str, Any] = json.loads((DATA / "expected.json").read_text())


@pytest.fixture
def stores(tmp_path: Path) -> Path:
    """The folder with all the stores."""
    with tarfile.open(DATA / "stores.tar.xz") as packed:
        packed.extractall(tmp_path, filter="data")
    return tmp_path


@pytest.mark.parametrize("name", EXPECTED)
def test_it_is_read_as_it_was(stores: Path, name: str) -> None:
    expected, path = EXPECTED[name], stores / name
    reader = StoreReader(path, allow_incomplete=True)
    manifest: Manifest = reader.manifest
    assert manifest.manifest_hash() == manifest.whole_hash == expected["manifest_hash"]
    assert reader.root_hash() == list_store(path).root_hash == expected["root_hash"]
    assert (manifest.num_samples, manifest.num_shards) == (expected["num_samples"], expected["num_shards"])
    assert list(reader.keys) == expected["keys"] and reader.dataset_index.tolist() == expected["dataset_index"]
    assert [entry.index for entry in reader.quarantined] == expected["quarantined"]
    assert reader.sources == [name] and set(reader.source_of.tolist()) == {0}
    assert seal(manifest.model_dump()) == (path / FILE_NAME).read_bytes()
    problems = [problem.message for problem in verify_store(path, deep=True).problems]
    assert problems == ["shard 1: not committed; run `alignkd dump` again"] * (name == "unfinished")


def test_an_unfinished_one_is_opened_for_writing_unchanged(stores: Path) -> None:
    before = (stores / "unfinished" / FILE_NAME).read_bytes()
    manifest = StoreReader(stores / "unfinished", allow_incomplete=True).manifest
    writer = open_writer(stores / "unfinished", manifest)
    assert writer.pending_shards() == [1] and (stores / "unfinished" / FILE_NAME).read_bytes() == before
