"""Records with no, one and several images in one store: every layout and codec gives back what was written."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from alignkd.storage import Codecs, EncodedArray, LogitsCodec, Manifest, Record, StoreError, StoreReader, verify_store
from alignkd.storage.codecs import get_codec
from alignkd.storage.errors import CorruptStoreError, RecordError
from alignkd.storage.layouts.rows import RecordCodec
from alignkd.storage.record.images import MAGIC, pack_files, unpack_files, vision_rows
from alignkd.storage.tools.compare.diff import diff_stores
from alignkd.storage.tools.convert import convert_store
from alignkd.storage.tools.index_rebuild import rebuild_indexes
from alignkd.storage.tools.stats import store_stats
from alignkd.storage.tools.verify.attention_sums import attention_sums

TOP3 = LogitsCodec(kind="topk", top_k=3)
STORES = {
    "floats": Codecs(attention="float16", vision_top="float16", vision_all="float32", logits=TOP3),
    "compact": Codecs(attention="sqrt_u8", vision_top="from_all", vision_all="int8_channel", logits=TOP3),
    "bfloat16": Codecs(
        attention="bfloat16", attention_pairs="vqv", vision_top="from_all", vision_all="bfloat16", logits=TOP3
    ),
    "text": Codecs(
        attention="sqrt_u8", attention_pairs="tqt", vision_top="int8_channel", vision_all="none", logits=TOP3
    ),
}
# by index: samples 2 and 4 show the same two images, 3 one of them alone, 6 the same two in the other order
IMAGES: tuple[tuple[str, ...], ...] = (
    ("a.png",),
    (),
    ("b.png", "c.jpg"),
    ("c.jpg",),
    ("b.png", "c.jpg"),
    ("a.png", "b.png", "a.png"),
    ("c.jpg", "b.png"),
    ("a.png",),
)


def content(name: str) -> bytes:
    return b"\xff\xd8\xff" + 3 * name.encode()


def as_stored(codec: str, values: Any) -> Any:
    encoded = EncodedArray.encode(codec, np.asarray(values, np.float32))
    return encoded.parts[""] if get_codec(codec).plain else encoded


def embeddings(manifest: Manifest, name: str) -> Any:
    seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:4])
    shape = (manifest.shapes.vision_tokens, manifest.shapes.hidden_size)
    # outliers of different size in every image, so that scales differ
    return np.random.default_rng(seed).normal(size=shape) * (1 + seed % 7)


def several(make_record: Callable[..., Record], manifest: Manifest, index: int) -> Record:
    """A text-only record with its images put in, every field recomputed by hand."""
    names, text = IMAGES[index % len(IMAGES)], make_record(manifest, index, text_only=True)
    if not names:
        return text
    rng, P, k = np.random.default_rng(index), manifest.shapes.vision_tokens or 0, len(names)
    ids, labels = text.input_ids.tolist(), text.labels.tolist()
    for at in rng.integers(0, 3, k):
        ids.insert(at, -200)
        labels.insert(at, -100)
    kinds = np.concatenate([np.full(P, 1) if token == -200 else [0] for token in ids])
    spliced = np.concatenate([np.full(P, -100) if i == -200 else [label] for i, label in zip(ids, labels, strict=True)])
    vision = np.flatnonzero(kinds == 1)
    queries = np.arange(vision[-1] + 1, len(kinds))
    fields: dict[str, Any] = {
        "images": names,
        "image_sha256": tuple(hashlib.sha256(content(name)).hexdigest() for name in names),
        "image_bytes": tuple(map(content, names)) if manifest.inputs == "embed" else (),
        "input_ids": np.array(ids, np.int32),
        "labels": np.array(labels, np.int32),
        "vision_positions": vision.astype(np.int32),
        "tqv_query_positions": queries.astype(np.int32),
        "supervised_positions": np.flatnonzero(spliced[1:] != -100).astype(np.int32),
        **targets(manifest, rng, names, len(queries)),
    }
    return replace(text, **fields)


def targets(manifest: Manifest, rng: np.random.Generator, names: tuple[str, ...], Q: int) -> dict[str, Any]:
    codecs, Ht, P, k = manifest.codecs, manifest.shapes.num_heads, manifest.shapes.vision_tokens, len(names)
    shape = {"tqv": (k, Q, Ht, P), "vqv": (k, k * P, Ht, P), "tqt": (1, Q, Ht, Q + 2)}[codecs.attention_pairs]
    attention = rng.random(shape)
    every = [embeddings(manifest, name) for name in names]
    top = np.sort(rng.permutation(k * P)[: manifest.shapes.vision_top_tokens]).astype(np.uint16)
    fields: dict[str, Any] = {
        "attention": as_stored(codecs.attention, attention),
        "vision_top_index": top,
    }
    if codecs.vision_all != "none":
        fields["vision_embeddings"] = tuple(as_stored(codecs.vision_all, image) for image in every)
    if codecs.vision_top == "from_all":
        fields["vision_top_embeddings"] = vision_rows(fields["vision_embeddings"], top)
    else:
        fields["vision_top_embeddings"] = as_stored(codecs.vision_top, np.concatenate(every)[top])
    return fields


@pytest.mark.parametrize("inputs", ["reference", "embed"])
@pytest.mark.parametrize("name", STORES)
def test_both_layouts_give_back_what_was_written(
    tmp_path: Path, make_manifest: Any, make_record: Any, write_store: Any, assert_same: Any, name: str, inputs: Any
) -> None:
    manifest = make_manifest(codecs=STORES[name], inputs=inputs, num_samples=len(IMAGES), shard_size=6)
    records = [several(make_record, manifest, index) for index in range(len(IMAGES))]
    zarr = write_store(tmp_path / "zarr", manifest, record_of=records.__getitem__)
    convert_store(zarr, tmp_path / "tar", "webdataset")
    convert_store(tmp_path / "tar", tmp_path / "again", "zarr")
    for path in (zarr, tmp_path / "tar", tmp_path / "again"):
        reader = StoreReader(path)
        assert verify_store(path, deep=True).ok
        for place in range(len(reader)):
            assert_same(reader[place], records[int(reader.dataset_index[place])])
            reader[place].recheck()
        in_order = np.argsort(reader.dataset_index)
        assert reader.num_images[in_order].tolist() == [len(names) for names in IMAGES]
        assert reader.sequence_lengths[in_order].tolist() == [record.sequence_length for record in records]
    assert diff_stores(StoreReader(zarr), StoreReader(tmp_path / "tar")).equal
    assert StoreReader(zarr).root_hash() == StoreReader(tmp_path / "again").root_hash()
    assert {state.state for state in rebuild_indexes(tmp_path / "tar", write=False)} == {"sound"}


def test_images_shown_together_are_stored_once(
    tmp_path: Path, make_manifest: Any, make_record: Any, write_store: Any
) -> None:
    manifest = make_manifest(codecs=STORES["compact"], inputs="embed", num_samples=len(IMAGES), shard_size=len(IMAGES))
    store = write_store(tmp_path / "s", manifest, record_of=lambda index: several(make_record, manifest, index))
    stats = store_stats(StoreReader(store))
    sets = set(IMAGES) - {()}
    assert stats.distinct_images == sum(map(len, sets)) == 9
    assert stats.records_with_image == 7 and stats.dedup_ratio == sum(map(len, IMAGES)) / 9
    [commit] = StoreReader(store).commits
    shapes, scale = manifest.shapes, commit.arrays["vision_embeddings_scale"]
    assert shapes.vision_tokens is not None
    assert commit.arrays["vision_embeddings"].shape == (9 * shapes.vision_tokens, shapes.hidden_size)
    assert scale.shape == (9, shapes.hidden_size)


def test_the_index_of_a_tar_is_rebuilt_with_the_rows_of_each_image(
    tmp_path: Path, make_manifest: Any, make_record: Any, write_store: Any
) -> None:
    manifest = make_manifest(
        codecs=STORES["floats"], backend="webdataset", inputs="embed", num_samples=len(IMAGES), shard_size=len(IMAGES)
    )
    store = write_store(tmp_path / "s", manifest, record_of=lambda index: several(make_record, manifest, index))
    index = store / "shards" / "00000000" / "00000000.idx"
    before = index.read_bytes()
    index.unlink()
    assert [state.state for state in rebuild_indexes(store, write=True)] == ["rebuilt"]
    assert index.read_bytes() == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": ("b.png",)}, "images has 1 paths, image_sha256 2 hashes"),
        ({"images": ("b.png", "c.jpg", "d.png")}, "images has 3 paths, image_sha256 2 hashes"),
        ({"images": ("b.png",), "image_sha256": ("0" * 64,)}, "input_ids holds 2 image tokens"),
        ({"image_bytes": (b"x", b"y")}, "have sha256"),
        ({"image_bytes": (b"x",)}, "image_bytes holds 1 files, image_sha256 2"),
        ({"vision_positions": np.arange(9, dtype=np.int32)}, r"vision_positions has shape \(9,\)"),
        (
            {"vision_embeddings": (np.zeros((10, 6), np.float32),)},
            r"have shapes \[\(10, 6\)\], tokens_of_image is \(5, 5",
        ),
        ({"vision_embeddings": (np.zeros((4, 6), np.float32),) * 2}, r"have shapes \[\(4, 6\), \(4, 6\)\], tokens_of"),
        ({"vision_embeddings": np.zeros((2, 5, 6), np.float32)}, "vision_embeddings is ndarray, expected a tuple"),
        ({"tokens_of_image": (4, 6, 0)}, r"tokens_of_image is \(4, 6, 0\), images 2"),
        ({"attention": np.zeros((3, 4, 2, 5), np.float16)}, r"attention has shape \(3, 4, 2, 5\), of 2 images"),
        ({"vision_top_index": np.array([1, 2, 10], np.uint16)}, "expected distinct tokens below 10"),
    ],
)
def test_what_does_not_fit_together_is_named(make_manifest: Any, make_record: Any, change: Any, message: str) -> None:
    manifest = make_manifest(codecs=STORES["floats"])
    with pytest.raises(RecordError, match=message):
        replace(several(make_record, manifest, 2), **change)


def test_a_store_refuses_blocks_of_another_shape(
    tmp_path: Path, make_manifest: Any, make_record: Any, write_store: Any
) -> None:
    manifest = make_manifest(codecs=STORES["floats"], num_samples=3)
    record = several(make_record, manifest, 2)
    assert isinstance(record.attention, np.ndarray)
    flat = replace(record, attention=np.concatenate(list(record.attention), axis=-1)[None])
    with pytest.raises(StoreError, match=r"attention has shape .*, the store expects \(2, "):
        write_store(tmp_path / "s", manifest, record_of=lambda index: replace(flat, index=index))


@pytest.mark.parametrize(
    ("images", "num_hashes"), [([], 0), (["b.png"], 1), (["b.png", "c.jpg", "d.png"], 3), (["b.png", "c.jpg"], 1)]
)
def test_rows_are_not_cut_by_a_list_that_does_not_fit_them(
    make_manifest: Any, make_record: Any, images: list[str], num_hashes: int
) -> None:
    manifest = make_manifest(codecs=STORES["floats"])
    codec, record = RecordCodec(manifest), several(make_record, manifest, 2)
    rows = codec.encode(record, with_image=True)
    text = json.loads(rows["text"].tobytes()) | {"image": images, "image_sha256": ["0" * 64] * num_hashes}
    rows["text"] = np.frombuffer(json.dumps(text).encode(), np.uint8)
    table = {"dataset_index": record.index, "attention_columns": manifest.shapes.vision_tokens}
    with pytest.raises(CorruptStoreError, match=rf"{len(images)} images, {num_hashes} hashes and 10 vision_positions"):
        codec.decode(rows.__getitem__, table)


def test_a_row_is_summed_over_the_blocks_of_all_images() -> None:
    blocks = np.full((3, 4, 2, 5), 0.06, np.float32)  # each block sums to 0.3
    sums = attention_sums(blocks)
    assert (sums.rows, sums.above_one) == (8, 0) and sums.largest_sum == pytest.approx(0.9)
    assert attention_sums(blocks * 1.2).above_one == 8


@given(st.lists(st.binary(max_size=40), min_size=2, max_size=6), st.integers(1, 12), st.binary(min_size=1, max_size=9))
def test_packed_files_come_back_whole_or_not_at_all(files: list[bytes], cut: int, tail: bytes) -> None:
    packed = pack_files(files)
    assert unpack_files(packed, len(files)) == tuple(files) and packed.startswith(MAGIC)
    for damaged in (packed[:-cut], packed + tail, tail + packed):
        with pytest.raises(StoreError, match="image_bytes: "):
            unpack_files(damaged, len(files))
    for count in (len(files) - 1, len(files) + 1):
        with pytest.raises(StoreError, match=f"bytes are not {count} image files"):
            unpack_files(packed, count)


@pytest.mark.parametrize("codec", ["float16", "bfloat16", "int8_channel"])
def test_rows_through_all_images_are_those_of_each(codec: str) -> None:
    values = np.random.default_rng(0).normal(size=(3, 5, 4)).astype(np.float32) * np.array([1, 10, 100])[:, None, None]
    index = np.array([14, 0, 7, 5], np.uint16)
    found = vision_rows([as_stored(codec, image) for image in values], index)
    decoded = found.decode() if isinstance(found, EncodedArray) else found
    for row, token in zip(decoded, index.tolist(), strict=True):
        alone = as_stored(codec, values[token // 5])
        of_image = alone.decode() if isinstance(alone, EncodedArray) else alone
        np.testing.assert_array_equal(row, of_image[token % 5])
