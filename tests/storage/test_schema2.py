"""Stores of schema 2, written by the code that wrote them last: whatever reads a store reads them to the same values.

`data/schema2/make_stores.py` made the stores and noted what the reader of that time returned.
"""

import hashlib
import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from alignkd.storage import (
    EncodedArray,
    HiddenStates,
    Record,
    SampledLogits,
    StoreError,
    StoreReader,
    TruncatedLogits,
    as_float32,
    open_writer,
    verify_store,
)
from alignkd.storage.read.listing import list_store
from alignkd.storage.tools.compare.diff import diff_stores
from alignkd.storage.tools.compare.sample_errors import stated_errors
from alignkd.storage.tools.convert import convert_store
from alignkd.storage.tools.index_rebuild import rebuild_indexes
from alignkd.storage.tools.merge import merge_stores
from alignkd.storage.tools.stats import store_stats
from alignkd.storage.tools.verify.plausibility import check_plausibility

DATA = Path(__file__).parent / "data" / "schema2"
EXPECTED: dict[str, Any] = json.loads((DATA / "expected.json").read_text())
TEXTS = ("key", "id", "index", "conversations", "images", "image_sha256")
ARRAYS = (
    "input_ids", "labels", "vision_positions", "tqv_query_positions", "supervised_positions", "vision_top_index"
)  # fmt: skip


@pytest.fixture(scope="session")
def stores(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with all stores of schema 2."""
    folder = tmp_path_factory.mktemp("schema2")
    with tarfile.open(DATA / "stores.tar.xz") as packed:
        packed.extractall(folder, filter="data")
    return folder


def digest(values: Any) -> str:
    array = np.ascontiguousarray(values)
    return f"{array.dtype.str}{list(array.shape)} {hashlib.sha256(array.tobytes()).hexdigest()[:16]}"


def of_record(found: Record) -> dict[str, Any]:
    """As `make_stores.of_record` described the records of that time."""
    fields: dict[str, Any] = {name: getattr(found, name) for name in TEXTS}
    fields["image_bytes"] = [digest(np.frombuffer(file, np.uint8)) for file in found.image_bytes]
    for name in ARRAYS:
        values = getattr(found, name)
        fields[name] = None if values is None else digest(values)
    every = None if found.vision_embeddings is None else found.vision_embeddings[0]
    decoded = {
        "attention": (found.attention, found.attention_float32),
        "vision_top_embeddings": (found.vision_top_embeddings, found.vision_top_embeddings_float32),
        "vision_embeddings": (every, found.vision_embeddings_float32),
    }
    for name, (target, values) in decoded.items():
        fields[name] = None if values is None else digest(values)
        fields[f"{name}_codec"] = target.codec if isinstance(target, EncodedArray) else None
    logits = found.logits
    if isinstance(logits, HiddenStates):
        fields["logits"] = {"states": digest(as_float32(logits.states))}
    elif isinstance(logits, TruncatedLogits | SampledLogits):
        fields["logits"] = {name: digest(values) for name, values in logits.__dict__.items()}
    else:
        fields["logits"] = None if logits is None else digest(logits)
    return json.loads(json.dumps(fields))  # type: ignore[no-any-return]


def check(reader: StoreReader, expected: dict[str, Any]) -> None:
    """Compare everything that does not depend on the layout and the schema."""
    assert [of_record(record) for record in reader] == expected["records"]
    for record in reader:
        record.recheck()
        assert record.tokens_of_image == (4,) * record.num_images
    for name in ("num_tokens", "sequence_lengths", "num_queries", "num_supervised", "num_images", "has_image"):
        assert getattr(reader, name).tolist() == expected[name], name
    assert (reader.num_vision == 4 * reader.num_images).all()
    selects = any(record["vision_top_index"] for record in expected["records"])
    assert (reader.num_vision_top == 2 * reader.has_image * selects).all()
    assert [[entry.index, entry.id, entry.reason] for entry in reader.quarantined] == expected["quarantined"]
    if "logprobs" in expected:
        found = [reader.logprobs(n).dense()[:1, :4] for n in range(len(reader))]
        np.testing.assert_allclose(np.array(found), np.array(expected["logprobs"]), atol=1e-4)


@pytest.mark.parametrize("name", EXPECTED)
def test_the_reader_returns_what_it_returned(stores: Path, name: str) -> None:
    reader, expected = StoreReader(stores / name), EXPECTED[name]
    manifest = reader.manifest
    assert manifest.schema_version == 2 and manifest.manifest_hash() == expected["manifest_hash"]
    codecs = manifest.codecs.model_dump()
    assert codecs["logits"].pop("tail") is None and codecs == expected["codecs"]
    assert reader.root_hash() == expected["root_hash"] == list_store(stores / name).root_hash
    check(reader, expected)


@pytest.mark.parametrize("name", EXPECTED)
def test_tools_read_it_and_converting_gives_the_same_targets(stores: Path, tmp_path: Path, name: str) -> None:
    path = stores / name
    assert verify_store(path, deep=True).problems == []
    reader = StoreReader(path)
    assert not check_plausibility(reader.files).attention.problems()
    assert store_stats(reader).records == len(reader) == stated_errors(reader, list(range(len(reader)))).records
    for backend in ("zarr", "webdataset"):
        convert_store(path, tmp_path / backend, backend)
        again = StoreReader(tmp_path / backend)
        assert again.manifest.schema_version == 3 and verify_store(tmp_path / backend, deep=True).problems == []
        check(again, EXPECTED[name])
        report = diff_stores(reader, again)
        assert report.equal and not report.fields and report.matched == len(reader)
        assert {found.field for found in report.manifest} <= {"schema_version", "backend"}
        stats = store_stats(again)
        assert stats.distinct_images == store_stats(reader).distinct_images
        assert stats.dedup_ratio == store_stats(reader).dedup_ratio


@pytest.mark.parametrize("name", [name for name in EXPECTED if "webdataset" in name])
def test_a_lost_index_of_it_is_rebuilt(stores: Path, name: str) -> None:
    assert {state.state for state in rebuild_indexes(stores / name, write=False)} == {"sound"}


def test_it_merges_with_a_store_of_the_present_schema(stores: Path, tmp_path: Path) -> None:
    old = stores / "compact-zarr-embed"
    convert_store(old, tmp_path / "new", "webdataset")
    merge_stores([old, tmp_path / "new"], tmp_path / "both", keep_first=True)
    merged = StoreReader(tmp_path / "both")
    assert merged.manifest.schema_version == 3 and len(merged) == len(StoreReader(old))
    assert verify_store(tmp_path / "both", deep=True).ok


def test_it_is_never_written(stores: Path, tmp_path: Path) -> None:
    manifest = StoreReader(stores / "exact-zarr-embed").manifest
    with pytest.raises(StoreError, match="schema 2 is read and not written; this alignkd writes schema 3"):
        open_writer(tmp_path / "store", manifest)
    assert not (tmp_path / "store").exists()
    with pytest.raises(StoreError, match="has schema 2, which this alignkd reads and does not write; choose another"):
        open_writer(stores / "exact-zarr-embed", manifest.changed())
