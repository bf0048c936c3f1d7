"""Stores of schema version 1 stay readable: two, written by alignkd 0.1.0, are kept as zip files.

`topk.zip`: float16 targets of text-query-vision pairs, top-3 logits, one image shared by two records of a shard.
`full.zip`: float32 targets of text-query-text pairs, full logits. Both hold a text-only record and a quarantined
sample; the values below are formulas, so that nothing has to be trusted but this file and the old writer.
"""

import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from alignkd.storage import Record, StoreError, StoreReader, StoreWriter, TruncatedLogits, verify_store
from alignkd.storage.schema.manifest import load_manifest, parse_manifest

GOLDEN = Path(__file__).parents[1] / "golden" / "store_v1"
NUM_SAMPLES, QUARANTINED = 5, 1
HASHES = {
    "topk": "6eb52409476462f091f30fb7680515657b2e93ce6af1cec08a732b71206a19b9",
    "full": "736b366826cb17cc8540aa251ea91e107e0737c50bde7a0f7ae92e50b6a533ed",
}
P, K, Ht, Dt, V = 4, 2, 3, 6, 50


def fraction(shape: tuple[int, ...], divisor: int, dtype: Any) -> np.ndarray:
    return ((np.arange(np.prod(shape)).reshape(shape) % 17 - 8) / divisor).astype(dtype)


def expected(name: str, index: int) -> Record:
    """Sample 2 is text-only; 0 and 4, in one shard, share an image."""
    full, with_image = name == "full", index != 2
    dtype = np.float32 if full else np.float16
    image = 3 if index == 3 else 4
    ids = [1, -200, 7, 8, 9, 10 + index] if with_image else [1, 7, 8, 9, 10 + index]
    positions = np.arange(len(ids) + (P - 1 if with_image else 0), dtype=np.int32)
    queries = positions[1 + P :] if with_image else positions[:0]
    columns = 3 + index if full else P
    return Record(
        key=f"{index:064x}",
        id=f"id {index} ж",
        index=index,
        conversations=[{"from": "human", "value": "?" * index}, {"from": "gpt", "value": "да"}],
        images=(f"{image}.png",) if with_image else (),
        image_sha256=(f"{image:064x}",) if with_image else (),
        input_ids=np.array(ids, np.int32),
        labels=np.array([-100] * (len(ids) - 2) + ids[-2:], np.int32),
        vision_positions=positions[1 : 1 + P] if with_image else positions[:0],
        tqv_query_positions=queries,
        supervised_positions=positions[-3:-1],
        attention=fraction((1, len(queries), Ht, columns), 7, dtype) if with_image else None,
        vision_top_index=np.array([2, 0], np.uint16) if with_image else None,
        vision_top_embeddings=fraction((K, Dt), 3, dtype) if with_image else None,
        vision_embeddings=fraction((1, P, Dt), image, dtype) if with_image else None,
        logits=fraction((2, V), 5 + index, dtype) if full else truncated(),
    )


def truncated() -> TruncatedLogits:
    """Two entries with tail, then a whole distribution: masses 1/2, 1/4 and 1/4; 1."""
    return TruncatedLogits(
        ids=np.array([3, 49, 4], np.uint16),
        logprobs=np.log([0.5, 0.25, 1]).astype(np.float16),
        offsets=np.array([0, 2, 3], np.int64),
        tail_logmass=np.array([np.log(0.25), -np.inf], np.float32),
    )


@pytest.fixture(params=sorted(HASHES))
def old_store(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A store of schema 1, unpacked."""
    with zipfile.ZipFile(GOLDEN / f"{request.param}.zip") as archive:
        archive.extractall(tmp_path)
    return tmp_path / str(request.param)


def test_every_record_is_what_was_written(old_store: Path, assert_same: Callable[[Record, Record], None]) -> None:
    reader = StoreReader(old_store)
    assert reader.manifest.schema_version == 1
    assert sorted(reader.dataset_index.tolist()) == sorted(set(range(NUM_SAMPLES)) - {QUARANTINED})
    for place, index in enumerate(reader.dataset_index.tolist()):
        found = reader[place]
        assert_same(found, expected(old_store.name, index))
        found.recheck()
    assert [(sample.index, sample.reason) for sample in reader.quarantined] == [(QUARANTINED, "image is damaged")]
    assert reader.find(id="id 3 ж") == [reader.dataset_index.tolist().index(3)]


def test_verify_finds_nothing(old_store: Path) -> None:
    report = verify_store(old_store, deep=True)
    assert report.ok, report.problems
    assert (report.num_shards, report.num_records) == (2, NUM_SAMPLES - 1)


def test_the_hash_is_what_it_was(old_store: Path) -> None:
    """Commit records and student checkpoints of that time carry it."""
    manifest = load_manifest(old_store)
    assert manifest.manifest_hash() == HASHES[old_store.name]
    assert (manifest.inputs, manifest.attachments, manifest.backend) == ("reference", {}, "zarr")
    as_new = manifest.model_copy(update={"schema_version": 2})
    assert as_new.manifest_hash() != manifest.manifest_hash()


def test_an_old_store_is_not_written_to(old_store: Path) -> None:
    manifest = load_manifest(old_store)
    with pytest.raises(StoreError, match="schema_version is 1, this alignkd writes 2; old stores are read-only"):
        manifest.check_writable()
    with pytest.raises(StoreError, match="schema_version is 1"):
        StoreWriter(old_store, manifest)
    wanted = manifest.model_copy(update={"schema_version": 2})
    with pytest.raises(StoreError, match="made with other settings: schema_version is 1 in the store, 2 asked for;"):
        StoreWriter(old_store, wanted)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"inputs": "embed"}, "inputs is given, schema 1 has no such setting"),
        ({"attachments": {}}, "attachments is given, schema 1 has no such setting"),
        ({"backend": "webdataset"}, "backend is webdataset, schema 1 has zarr"),
        ({"codecs": {"attention": "sqrt_u8"}}, "codecs.attention is sqrt_u8, schema 1 has float32, float16, none"),
        ({"codecs": {"logits": {"kind": "hidden", "dtype": "float16"}}}, "codecs.logits.kind is hidden, schema 1 has"),
    ],
)
def test_what_schema_1_did_not_know_is_refused(old_store: Path, changes: dict[str, Any], message: str) -> None:
    document = load_manifest(old_store).model_dump(exclude_unset=True)
    changed = document | changes
    changed["codecs"] = document["codecs"] | changes.get("codecs", {})
    with pytest.raises(StoreError, match=message):
        parse_manifest(changed, "manifest.json")
