"""The plan of a store with additions: every sample in one shard, and earlier shards as they were."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from alignkd.storage import Codecs, LogitsCodec, Manifest, Shapes
from alignkd.storage.schema.manifest import parse_manifest
from alignkd.storage.schema.plan import planned_shards, store_plan
from alignkd.storage.schema.sealed_json import seal, unseal_bytes
from alignkd.storage.schema.sources import Addition, StoredPiece, StoredSource

BASE = Manifest(
    fingerprint={"weights": "w"},
    data_fingerprint={"conversations": "c" * 64},
    shapes=Shapes(num_heads=1, hidden_size=2, vision_tokens=3, vocab_size=4, vision_top_tokens=1),
    codecs=Codecs(attention="float16", vision_top="float16", vision_all="float16", logits=LogitsCodec(kind="full")),
    num_samples=7,
    shard_size=3,
    seed=5,
)


def source(name: str, num_samples: int, **fields: object) -> StoredSource:
    piece = {"name": f"{name}.json", "num_samples": num_samples, "sha256": "a" * 64}
    return StoredSource.model_validate({"name": name, "num_samples": num_samples, "pieces": [piece], **fields})


def addition(num_samples: int, contiguous: bool = False, name: str = "x") -> Addition:
    return Addition(
        added="2026-11-28T12:00:00Z",
        sources=(source(name, num_samples),),
        num_samples=num_samples,
        contiguous=True if contiguous else None,
    )


@given(st.integers(0, 60), st.integers(1, 12), st.integers(0, 5))
def test_contiguous_shards_hold_every_sample_once_and_in_order(num_samples: int, shard_size: int, seed: int) -> None:
    plan = planned_shards(num_samples, shard_size, seed, contiguous=True)
    assert sorted(np.concatenate([*plan, []]).tolist()) == list(range(num_samples))
    assert all((np.diff(shard) == 1).all() for shard in plan)
    shuffled = planned_shards(num_samples, shard_size, seed, contiguous=False)
    assert [len(shard) for shard in plan] == [len(shard) for shard in shuffled]


def test_contiguous_shards_are_shuffled() -> None:
    starts = [int(shard[0]) for shard in planned_shards(600, 3, 1, contiguous=True)]
    assert starts != sorted(starts) and len(set(starts)) == 200


parts = st.lists(st.tuples(st.integers(1, 20), st.booleans()), max_size=4)


@given(st.integers(1, 20), st.booleans(), st.integers(1, 6), parts)
def test_an_addition_leaves_the_shards_before_it_alone(
    first: int, contiguous: bool, shard_size: int, added: list[tuple[int, bool]]
) -> None:
    manifest = BASE.changed(num_samples=first, shard_size=shard_size, contiguous=True if contiguous else None)
    plans, hashes = [store_plan(manifest)], [[manifest.shard_hash(n) for n in range(manifest.num_shards)]]
    for number, (count, in_order) in enumerate(added):
        more = (*(manifest.additions or ()), addition(count, in_order, f"x{number}"))
        manifest = manifest.changed(additions=more)
        plans.append(store_plan(manifest))
        hashes.append([manifest.shard_hash(n) for n in range(manifest.num_shards)])
    total = first + sum(count for count, _ in added)
    assert manifest.num_samples == total and sorted(np.concatenate(plans[-1]).tolist()) == list(range(total))
    for before, after, old, new in zip(plans, plans[1:], hashes, hashes[1:], strict=False):
        assert all(np.array_equal(a, b) for a, b in zip(before, after, strict=False))
        assert new[: len(old)] == old and not set(new[len(old) :]) & set(old)
    assert [manifest.planned_size(shard) for shard in range(manifest.num_shards)] == [len(s) for s in plans[-1]]
    assert manifest.planned_size(manifest.num_shards) == 0
    again = parse_manifest(unseal_bytes(seal(manifest.model_dump()), "m"), "m")
    assert again == manifest and again.whole_hash == manifest.whole_hash


def test_a_manifest_without_the_new_keys_has_none_of_them() -> None:
    assert not {"sources", "contiguous", "additions", "first_samples"} & BASE.model_dump().keys()
    assert BASE.whole_hash == BASE.manifest_hash() == BASE.changed().manifest_hash()


def test_the_hash_of_an_addition_depends_on_all_before_it_but_not_on_the_clock() -> None:
    one, two = addition(2, name="x"), addition(3, name="y")
    whole = BASE.changed(additions=(one, two))
    assert whole.manifest_hash() == BASE.manifest_hash() and whole.shard_hash(0) == BASE.manifest_hash()
    later = one.model_copy(update={"added": "2030-01-01T00:00:00Z"})
    assert BASE.changed(additions=(later, two)).whole_hash == whole.whole_hash
    for other in (addition(2, name="z"), addition(2, True, "x"), addition(4, name="x")):
        assert BASE.changed(additions=(other, two)).whole_hash != whole.whole_hash


def test_sources_of_all_parts_are_joined() -> None:
    grown = source("x", 2, pieces=[{"name": "x.json", "num_samples": 9, "sha256": "b" * 64, "earlier": 7}])
    more = Addition(added="2026-11-28T12:00:00Z", sources=(grown, source("y", 4)), num_samples=6)
    found = BASE.changed(sources=[source("x", 7)], data_fingerprint={}, additions=[more]).all_sources()
    assert [(one.name, one.num_samples, [piece.num_samples for piece in one.pieces]) for one in found] == [
        ("x", 9, [9]),
        ("y", 4, [4]),
    ]
    unlisted = BASE.changed(additions=[more]).all_sources()
    assert [(one.name, one.num_samples) for one in unlisted] == [("x", 9), ("y", 4)]
    assert BASE.all_sources() == []


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"sources": [source("x", 6)]}, "sources have 6 samples, num_samples is 7"),
        ({"sources": [source("x", 3), source("y", 2), source("x", 2)]}, "expected each once"),
        ({"additions": []}, "at least 1"),
        ({"additions": [addition(2).model_copy(update={"num_samples": 3})]}, "sources have 2 samples"),
        ({"additions": [addition(1 << 27)]}, "samples with additions, at most"),
        ({"contiguous": False}, "True"),
    ],
)
def test_what_does_not_add_up_is_refused(fields: dict[str, object], problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        BASE.changed(**fields)


def test_a_piece_has_an_earlier_part_of_at_least_one_sample() -> None:
    with pytest.raises(ValueError, match="earlier"):
        StoredPiece(name="a", num_samples=2, sha256="a" * 64, earlier=0)
