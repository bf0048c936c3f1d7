"""Stores whose tail is unknown: bytes, checks, what readers say of them; and that all other stores are as before."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from alignkd.storage import (
    Codecs,
    LogitsCodec,
    Manifest,
    Record,
    RecordError,
    Shapes,
    StoreError,
    StoreReader,
    TruncatedLogits,
    open_writer,
)
from alignkd.storage.layouts.registry import layout_names
from alignkd.storage.logits.registry import LogitSizes, logits_codec
from alignkd.storage.read.logprobs import answers, entropies
from alignkd.storage.read.teacher_logprobs import teacher_logprobs
from alignkd.storage.schema.manifest import parse_manifest
from alignkd.storage.tools.compare.diff import diff_stores
from alignkd.storage.tools.convert import convert_store
from alignkd.storage.tools.verify.verify import verify_store

V = 50
SIZES = LogitSizes(vocab_size=V, hidden_size=4)
UNKNOWN = LogitsCodec(kind="topk", top_k=3, dtype="float32", tail="unknown")


def logits(**changes: Any) -> TruncatedLogits:
    fields: dict[str, Any] = {
        "ids": np.array([3, 49, 4], np.uint16),
        "logprobs": np.log([0.25, 0.75, 1.0]).astype(np.float32),
        "offsets": np.array([0, 2, 3], np.int64),
        "tail_logmass": None,
    }
    return TruncatedLogits(**fields | changes)


def manifest_of(settings: LogitsCodec, backend: str = "zarr") -> Manifest:
    return Manifest(
        fingerprint={"imported": "i"},
        data_fingerprint={"conversations": "c"},
        shapes=Shapes(num_heads=2, hidden_size=4, vision_tokens=4, vision_top_tokens=2, vocab_size=V),
        codecs=Codecs(attention="none", vision_top="none", vision_all="none", logits=settings),
        backend=backend,
        num_samples=3,
        shard_size=2,
        seed=0,
    )


def write_store(path: Path, backend: str = "zarr") -> Path:
    """Three text-only samples."""
    writer = open_writer(path, manifest_of(UNKNOWN, backend))
    for shard in writer.pending_shards():
        with writer.open_shard(shard) as sink:
            for index in writer.planned_samples(shard).tolist():
                sink.append(record(index))
            sink.commit()
    return path


def record(index: int) -> Record:
    none = np.zeros(0, np.int32)
    return Record(
        key=f"{index:064x}",
        id=f"id {index}",
        index=index,
        conversations=[{"from": "human", "value": "?"}, {"from": "gpt", "value": "!"}],
        images=(),
        image_sha256=(),
        input_ids=np.array([1, 7, 49, 4], np.int32),
        labels=np.array([-100, -100, 49, 4], np.int32),
        vision_positions=none,
        tqv_query_positions=none,
        supervised_positions=np.array([1, 2], np.int32),
        logits=logits(),
    )


def test_the_arrays_lack_the_tail() -> None:
    codec = logits_codec(UNKNOWN, SIZES)
    assert codec is not None
    stored = codec.encode(logits())
    assert {*stored} == {name for name, *_ in codec.arrays()} == {"entry_counts", "entry_ids", "entry_logprobs"}
    found = codec.decode(stored.__getitem__)
    assert found.tail_logmass is None and found.num_positions == 2
    for name in ("ids", "logprobs", "offsets"):
        np.testing.assert_array_equal(getattr(found, name), getattr(logits(), name))
    assert "tail is unknown" in json.dumps(codec.describe())


def test_entries_must_sum_to_one() -> None:
    with pytest.raises(RecordError, match=r"position 0 hold mass 0\.7500, expected 1: the tail is unknown"):
        logits(logprobs=np.log([0.25, 0.5, 1.0]).astype(np.float32))


@pytest.mark.parametrize("tail", [None, np.full(2, -np.inf, np.float32)])
def test_record_and_store_must_agree(tail: Any) -> None:
    settings = LogitsCodec(kind="topk", top_k=3) if tail is None else UNKNOWN
    codec = logits_codec(settings, SIZES)
    assert codec is not None
    with pytest.raises(StoreError, match="the tail of the record is"):
        codec.encode(logits(tail_logmass=tail))


@pytest.mark.parametrize("kind", ["full", "nucleus", "hidden", "sampled", "none"])
def test_only_top_k_may_lack_it(kind: Any) -> None:
    with pytest.raises(ValidationError, match="an unknown tail belongs to kind topk"):
        LogitsCodec(kind=kind, tail="unknown")
    with pytest.raises(ValidationError):
        LogitsCodec(kind="topk", tail="known")  # type: ignore[arg-type]


def test_logprobs_are_those_of_the_support(tmp_path: Path) -> None:
    reader = StoreReader(write_store(tmp_path / "store"))
    found = teacher_logprobs(reader[0].logits, reader.manifest, None, "store")
    dense = found.dense()
    np.testing.assert_allclose(np.exp(dense).sum(1), 1, atol=1e-6)
    assert np.isneginf(dense).sum() == 2 * V - 3 and np.isneginf(found.of(np.array([0, 4])))[0]
    assert getattr(found, "tail_logmass", 0) is None
    probs = np.array([0.25, 0.75])
    np.testing.assert_allclose(entropies(logits(), V), [-(probs * np.log(probs)).sum(), 0], atol=1e-6)
    told = answers(logits(), np.array([0, 1]), np.array([49, 3]), V)
    np.testing.assert_array_equal(told.kept, [True, False])


@pytest.mark.parametrize("backend", layout_names())
def test_a_store_is_whole_in_every_layout(tmp_path: Path, backend: str) -> None:
    """Verified, converted to the other layout and back without a difference; the same records."""
    store = write_store(tmp_path / "a", backend)
    assert not verify_store(store).problems
    other = next(name for name in layout_names() if name != backend)
    convert_store(store, tmp_path / "b", other)
    convert_store(tmp_path / "b", tmp_path / "c", backend)
    assert diff_stores(StoreReader(store), StoreReader(tmp_path / "b")).equal
    hashes = [StoreReader(path).root_hash() for path in (store, tmp_path / "c")]
    assert hashes[0] == hashes[1]


def test_the_manifest_is_what_it_was_where_the_tail_is_known(tmp_path: Path) -> None:
    """No key, so the hash of an existing store does not change; and an unknown tail is one more key, which a reader of
    before refuses."""
    known, unknown = (
        manifest_of(LogitsCodec(kind="topk", top_k=3, dtype="float32", tail=tail)) for tail in (None, "unknown")
    )
    assert "tail" not in json.dumps(known.model_dump(mode="json"))
    assert known.manifest_hash() != unknown.manifest_hash()
    document = unknown.model_dump(mode="json")
    (target,) = [target for target in document["targets"] if target["name"] == "logits"]
    assert target["codec"].pop("tail") == "unknown"
    assert parse_manifest(document, "m").manifest_hash() == known.manifest_hash()
    assert parse_manifest(unknown.model_dump(mode="json"), "m") == unknown
