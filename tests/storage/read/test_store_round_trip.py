"""What is written comes back to the bit, through our reader and through plain zarr-python."""

import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from alignkd.storage import Codecs, LogitsCodec, Manifest, Record, RecordError, StoreError, StoreReader, open_writer
from alignkd.storage.schema.columns.shard import GROUPS, columns_of

WriteStore = Callable[..., Path]
AssertSame = Callable[[Record, Record], None]
MakeManifest = Callable[..., Manifest]
MakeRecord = Callable[..., Record]

FLOATS = ["float32", "float16", "bfloat16"]
LOGITS = st.sampled_from(
    [
        LogitsCodec(kind="full", dtype="float32"),
        LogitsCodec(kind="topk", top_k=3),
        LogitsCodec(kind="nucleus", p=0.9, min_entries=1, max_entries=8),
        LogitsCodec(kind="hidden", dtype="int8_group"),
        LogitsCodec(kind="sampled", num_draws=20),
        LogitsCodec(kind="none"),
    ]
)
CODECS = st.builds(
    Codecs,
    attention=st.sampled_from([*FLOATS, "sqrt_u8", "none"]),
    attention_pairs=st.sampled_from(["tqv", "tqt", "vqv"]),
    vision_top=st.sampled_from([*FLOATS, "int8_channel", "from_all", "none"]),
    vision_all=st.sampled_from([*FLOATS, "int8_channel"]),
    logits=LOGITS,
)


@settings(max_examples=25)
@given(
    codecs=CODECS,
    layout=st.fixed_dictionaries(
        {"backend": st.sampled_from(["zarr", "webdataset"]), "inputs": st.sampled_from(["reference", "embed"])}
    ),
    num_samples=st.integers(1, 9),
    shard_size=st.integers(3, 9),
    text_only=st.sets(st.integers(0, 8)),
    quarantine=st.sets(st.integers(0, 8), max_size=3),
    words=st.lists(st.text(max_size=20), min_size=1, max_size=4),
)
def test_every_record_comes_back_to_the_bit(
    make_manifest: MakeManifest,
    make_record: MakeRecord,
    write_store: WriteStore,
    assert_same: AssertSame,
    codecs: Codecs,
    layout: dict[str, str],
    num_samples: int,
    shard_size: int,
    text_only: set[int],
    quarantine: set[int],
    words: list[str],
) -> None:
    manifest = make_manifest(codecs=codecs, num_samples=num_samples, shard_size=shard_size, **layout)

    def record_of(index: int) -> Record:
        word = words[index % len(words)]
        turns = [{"from": "human", "value": word}, {"from": "gpt", "value": word[::-1]}]
        return make_record(manifest, index, text_only=index in text_only, id=word, conversations=turns)

    with tempfile.TemporaryDirectory() as folder:
        path = write_store(Path(folder) / "store", manifest, quarantine=quarantine, record_of=record_of)
        reader = StoreReader(path)
        assert sorted(reader.dataset_index) == sorted(set(range(num_samples)) - quarantine)
        for place in range(len(reader)):
            assert_same(reader[place], record_of(int(reader.dataset_index[place])))


def test_edge_records_come_back(
    tmp_path: Path,
    make_manifest: MakeManifest,
    make_record: MakeRecord,
    write_store: WriteStore,
    assert_same: AssertSame,
) -> None:
    """No supervised position, no text after the image, no conversation, broken Unicode, text without a token."""
    manifest = make_manifest(num_samples=4, codecs=Codecs(logits=LogitsCodec(kind="none")))
    nothing, P = np.empty(0, np.int32), manifest.shapes.vision_tokens
    empty = {"labels": nothing, "tqv_query_positions": nothing, "supervised_positions": nothing, "input_ids": nothing}
    image_last = {
        **empty,
        "input_ids": np.array([1, -200], np.int32),
        "labels": np.full(2, -100, np.int32),
        "vision_positions": np.arange(1, P + 1, dtype=np.int32),
        "attention": np.empty((1, 0, 2, P), np.float16),
    }
    changes: dict[int, dict[str, Any]] = {
        0: image_last,
        1: {"conversations": [], "id": "\ud83d lone surrogate \x00"},
        3: empty,
    }

    def record_of(index: int) -> Record:
        return make_record(manifest, index, **changes.get(index, {}))

    reader = StoreReader(write_store(tmp_path / "store", manifest, record_of=record_of))
    for place in range(4):
        assert_same(reader[place], record_of(int(reader.dataset_index[place])))
    [without_queries] = [reader[place] for place in reader.find(index=0)]
    assert without_queries.attention is not None and without_queries.attention.shape == (1, 0, 2, P)


def test_plain_zarr_reads_every_array_as_we_do(small_store: Path) -> None:
    reader = StoreReader(small_store)
    for commit in reader.commits:
        group = zarr.open_group(small_store / "shards" / f"{commit.shard:08d}", mode="r")
        assert sorted(group.array_keys()) == sorted(column.name for column in columns_of(reader.manifest))
        offsets: Any = group["offsets"]
        assert offsets.attrs["labels"] == list(GROUPS)
        first = sum(c.num_records for c in reader.commits if c.shard < commit.shard)
        for number in range(commit.num_records):
            record = reader[first + number]
            begin, end = (dict(zip(GROUPS, offsets[number + at].tolist(), strict=True)) for at in (0, 1))

            def rows(name: str, axis: str, group: Any = group, begin: Any = begin, end: Any = end) -> np.ndarray:
                return np.asarray(group[name][begin[axis] : end[axis]])

            assert rows("input_ids", "token").tolist() == record.input_ids.tolist()
            assert json.loads(rows("text", "text").tobytes())["conversations"] == record.conversations
            if record.attention is not None and record.vision_embeddings is not None:
                assert (rows("attention", "attention") == record.attention[0]).all()
                source = group["records"][number, group["records"].attrs["labels"].index("image_record")]
                first_row, last_row = offsets[int(source) : int(source) + 2, GROUPS.index("image_token")].tolist()
                assert (group["vision_embeddings"][first_row:last_row] == record.vision_embeddings[0]).all()


def test_an_image_is_stored_once_per_shard(
    tmp_path: Path, make_manifest: MakeManifest, write_store: WriteStore
) -> None:
    """Samples 0 and 1, 4 and 5, 8 and 9 share an image; 2 and 6 stand alone; 3 and 7 have none."""
    reader = StoreReader(write_store(tmp_path / "one", make_manifest(shard_size=10)))
    assert reader.commits[0].totals.images == 5 and reader.manifest.shapes.vision_tokens == 5
    assert reader.commits[0].arrays["vision_embeddings"].shape[0] == 5 * 5


def test_a_store_written_from_a_store_has_the_same_bytes(
    tmp_path: Path, small_store: Path, write_store: WriteStore, tree_bytes: Callable[[Path], dict[str, bytes]]
) -> None:
    reader = StoreReader(small_store)
    skipped = [sample.index for sample in reader.quarantined]
    copy = write_store(
        tmp_path / "copy",
        reader.manifest,
        quarantine=skipped,
        record_of=lambda index: reader[reader.find(index=index)[0]],
    )
    assert tree_bytes(copy) == tree_bytes(small_store)


@pytest.mark.parametrize(
    ("codecs", "changes", "message"),
    [
        ({}, {"attention": None}, "attention is absent, the store's codec for it is float16"),
        ({"attention": "none"}, {}, "attention is present, the store's codec for it is none"),
        ({"vision_top": "none"}, {}, "vision_top_embeddings is present"),
        (
            {},
            {"attention": np.zeros((1, 1, 2, 5), np.float16)},
            r"attention has shape \(1, 1, 2, 5\), the store",
        ),
        ({}, {"vision_embeddings": (np.zeros((5, 7), np.float16),)}, r"vision_embeddings has shape \(5, 7\), the"),
        ({}, {"logits": None}, "logits: the record has none, the store keeps topk"),
    ],
)
def test_targets_that_the_manifest_does_not_promise_are_refused(
    tmp_path: Path,
    make_manifest: MakeManifest,
    make_record: MakeRecord,
    codecs: dict[str, Any],
    changes: dict[str, Any],
    message: str,
) -> None:
    manifest = make_manifest(num_samples=1)
    record = make_record(manifest, 0, **changes)
    promised = make_manifest(num_samples=1, codecs=manifest.codecs.model_copy(update=codecs))
    expected = rf"sample 'sample-0' \(index 0\): {message}"
    with open_writer(tmp_path / "store", promised).open_shard(0) as sink, pytest.raises(StoreError, match=expected):
        sink.append(record)


def test_after_a_value_that_overflows_the_shard_goes_on(
    tmp_path: Path, make_manifest: MakeManifest, make_record: MakeRecord, assert_same: AssertSame
) -> None:
    manifest = make_manifest(num_samples=3, shard_size=3)
    writer = open_writer(tmp_path / "store", manifest)
    first, second, third = writer.planned_samples(0).tolist()
    make_record(manifest, first, text_only=False)
    with writer.open_shard(0) as sink:
        with pytest.raises(RecordError, match="vision_embeddings: float16 holds values up to 65504, found 70000"):
            sink.append(
                make_record(
                    manifest,
                    first,
                    text_only=False,
                    vision_embeddings=(np.full((5, 6), 7e4, np.float32),),
                )
            )
        sink.quarantine(first, "s", "overflow")
        sink.append(make_record(manifest, second, text_only=False))
        sink.append(make_record(manifest, third))
        sink.commit()
    reader = StoreReader(tmp_path / "store")
    assert_same(reader[0], make_record(manifest, second, text_only=False))
    assert_same(reader[1], make_record(manifest, third))
    assert [(sample.index, sample.reason) for sample in reader.quarantined] == [(first, "overflow")]
