"""Stores are compared by what is in them, not by how it lies there."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from alignkd.storage import Codecs, EncodedArray, LogitsCodec, Record, StoreReader
from alignkd.storage.codecs import get_codec
from alignkd.storage.record.images import vision_rows
from alignkd.storage.tools.compare.diff import DiffReport, diff_stores
from alignkd.storage.tools.convert import convert_store


def compare(a: Path, b: Path, **options: Any) -> DiffReport:
    return diff_stores(StoreReader(a), StoreReader(b), **options)


def as_codec(values: np.ndarray, codec: str) -> Any:
    encoded = EncodedArray.encode(codec, values)
    return encoded.parts[""] if get_codec(codec).plain else encoded


@pytest.fixture(scope="session")
def exact_records(make_manifest: Any, make_record: Any) -> Any:
    """(index, codecs) -> the same float32 record in other codecs."""
    manifest = make_manifest(
        codecs=Codecs(
            attention="float32",
            vision_top="float32",
            vision_all="float32",
            logits=LogitsCodec(kind="full", dtype="float32"),
        )
    )

    def make(index: int, codecs: Codecs) -> Record:
        record = make_record(manifest, index)
        changes: dict[str, Any] = {}
        if record.has_image:
            changes["attention"] = as_codec(record.attention, codecs.attention)
            every = record.vision_embeddings or ()
            changes["vision_embeddings"] = tuple(as_codec(image, codecs.vision_all) for image in every)
            changes["vision_top_embeddings"] = vision_rows(changes["vision_embeddings"], record.vision_top_index)
        if codecs.logits.dtype == "float16":
            changes["logits"] = record.logits.astype(np.float16)
        elif codecs.logits.dtype == "float32":
            changes["logits"] = record.logits.astype(np.float32)
        return Record(**{**record.__dict__, **changes})

    return make


def test_a_store_equals_itself_in_the_other_layout(small_store: Path, tmp_path: Path) -> None:
    convert_store(small_store, tmp_path / "tar", "webdataset")
    report = compare(small_store, tmp_path / "tar")
    assert report.equal and report.matched == 8 and not report.fields
    assert [(found.field, found.a, found.b) for found in report.manifest] == [("backend", "zarr", "webdataset")]


@pytest.mark.parametrize(
    ("attention", "vision", "logits"), [("float16", "float16", "float16"), ("sqrt_u8", "int8_channel", "float16")]
)
def test_other_codecs_are_equal_within_their_stated_bounds(
    tmp_path: Path, make_manifest: Any, write_store: Any, exact_records: Any, attention: str, vision: str, logits: str
) -> None:
    stores = []
    for name, codecs in {
        "exact": Codecs(attention="float32", vision_top="from_all", vision_all="float32",
                        logits=LogitsCodec(kind="full", dtype="float32")),
        "other": Codecs(attention=attention, vision_top="from_all", vision_all=vision,
                        logits=LogitsCodec(kind="full", dtype=logits)),
    }.items():  # fmt: skip
        manifest = make_manifest(codecs=codecs, shard_size=10)
        stores.append(
            write_store(tmp_path / name, manifest, record_of=lambda i, codecs=codecs: exact_records(i, codecs))
        )
    report = compare(*stores)
    found = {entry.field: entry for entry in report.fields}
    assert report.equal and {"attention", "vision_embeddings", "logits"} <= found.keys()
    assert all(entry.max_abs and entry.relative_l2 and not entry.beyond for entry in found.values())
    tight = compare(*stores, tolerance=found["attention"].max_abs / 2)
    assert not tight.equal and {entry.field for entry in tight.fields if entry.beyond} >= {"attention"}
    assert compare(*stores, tolerance=1.0).equal


def test_what_differs_is_named(tmp_path: Path, make_manifest: Any, make_record: Any, write_store: Any) -> None:
    def changed(index: int) -> Record:
        record = make_record(manifest, index)
        if index == 2:
            attention = record.attention.copy()
            attention[0, 1, 0, 3] += np.float16(0.25)
            return Record(**{**record.__dict__, "attention": attention})
        return Record(**{**record.__dict__, "id": "renamed"}) if index == 3 else record

    manifest = make_manifest(shard_size=10)
    a = write_store(tmp_path / "a", manifest, quarantine=(6,))
    b = write_store(tmp_path / "b", manifest, record_of=changed, quarantine=(5,))
    report = compare(a, b)
    found = {entry.field: entry for entry in report.fields}
    assert not report.equal and found.keys() == {"attention", "id"}
    assert found["attention"].worst.index == 2 and found["attention"].max_abs == pytest.approx(0.25, abs=1e-3)
    assert found["id"].worst.index == 3 and found["id"].max_abs is None and found["id"].records == 1
    assert [name.index for name in report.only_a] == [5] and [name.index for name in report.only_b] == [6]
    assert report.quarantined_only_a == [(6, "sample-6")] and report.quarantined_only_b == [(5, "sample-5")]
    assert {entry.field for entry in compare(a, b, ignore=("id", "attention")).fields} == set()


def test_kinds_of_logits_are_compared_where_both_keep_a_token(
    tmp_path: Path, make_manifest: Any, make_record: Any, write_store: Any
) -> None:
    stores, codecs = [], {
        "full": LogitsCodec(kind="full", dtype="float32"),
        "topk": LogitsCodec(kind="topk", top_k=6, dtype="float16"),
        "sampled": LogitsCodec(kind="sampled", num_draws=9),
    }  # fmt: skip
    for name, logits in codecs.items():  # the fixture draws the same logits for each kind
        manifest = make_manifest(codecs=Codecs(attention="none", vision_top="none", vision_all="none", logits=logits),
                                 num_samples=4)  # fmt: skip
        stores.append(write_store(tmp_path / name, manifest))
    full, topk, sampled = stores
    [found] = [entry for entry in compare(full, topk).fields if entry.field == "logits"]
    assert found.beyond == 0 and 0 < (found.max_abs or 0) < 0.02 and "tokens that both keep" in found.note
    [draws] = compare(topk, sampled).fields
    assert draws.beyond == 4 and draws.note == "cannot be compared: draws have no probabilities in B"


def test_samples_that_share_a_key_are_paired_in_order(
    tmp_path: Path, make_manifest: Any, make_record: Any, write_store: Any
) -> None:
    manifest = make_manifest()
    same = "ab" * 32
    store = write_store(tmp_path / "a", manifest, record_of=lambda i: make_record(manifest, i, key=same))
    shutil.copytree(store, tmp_path / "b")
    report = compare(store, tmp_path / "b")
    assert report.equal and report.matched == 10 and not report.fields
