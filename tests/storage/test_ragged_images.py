"""Images with any number of tokens, and further targets: whole stores in both layouts, through every tool."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from alignkd.storage import (
    Codecs,
    LogitsCodec,
    Manifest,
    Record,
    Shapes,
    StoreError,
    StoreReader,
    open_writer,
    verify_store,
)
from alignkd.storage.codecs import codec_names
from alignkd.storage.layouts.prediction import ShardRows
from alignkd.storage.layouts.registry import get_backend
from alignkd.storage.layouts.rows import RecordCodec
from alignkd.storage.schema.columns.shard import OFFSETS, columns_of
from alignkd.storage.schema.targets.named import NamedTarget
from alignkd.storage.tools.compare.diff import diff_stores
from alignkd.storage.tools.compare.sample_errors import stated_errors
from alignkd.storage.tools.convert import convert_store
from alignkd.storage.tools.index_rebuild import rebuild_indexes
from alignkd.storage.tools.merge import merge_stores
from alignkd.storage.tools.stats import store_stats
from alignkd.storage.tools.verify.plausibility import check_plausibility

MakeManifest = Callable[..., Manifest]
MakeRecord = Callable[..., Record]
SHAPES = Shapes(
    num_heads=2, hidden_size=6, vision_tokens=None, vocab_size=40, num_tokens=38, vision_top_tokens=4, attention_layer=1
)
# what the next versions are to store, by name
MORE = (
    NamedTarget(
        name="deep", kind="attention", codec="sqrt_u8", layers=(0, 2), rows="tqv_query", columns="vision", heads=2
    ),
    NamedTarget(name="hidden", kind="values", codec="int8_group", layers=(0, 2), rows="vision", width=70),
    NamedTarget(name="features", kind="values", codec="bfloat16", rows="image_token", width=5),
    NamedTarget(name="relations", kind="values", codec="float16", rows="vision", columns="vision"),
    NamedTarget(name="triangle", kind="values", codec="float32", rows="own"),
    NamedTarget(name="answer", kind="values", codec="float32", rows="record"),
    NamedTarget(
        name="blind",
        kind="logits",
        codec=LogitsCodec(kind="topk", top_k=3),
        rows="supervised",
        forward_pass="without_image",
    ),
)
CODECS = {
    "floats": Codecs(vision_all="float32", logits=LogitsCodec(kind="full")),
    "compact": Codecs(
        attention="sqrt_u8", vision_top="from_all", vision_all="int8_channel", logits=LogitsCodec(kind="nucleus", p=0.9)
    ),
    "own scale": Codecs(
        attention="bfloat16",
        attention_pairs="vqv",
        vision_top="int8_channel",
        vision_all="none",
        logits=LogitsCodec(kind="sampled"),
    ),
    "text": Codecs(attention_pairs="tqt", vision_top="float32", logits=LogitsCodec(kind="hidden", dtype="int8_group")),
}


@pytest.mark.parametrize("inputs", ["reference", "embed"])
@pytest.mark.parametrize("name", CODECS)
def test_every_tool_reads_what_was_written(
    tmp_path: Path,
    make_manifest: MakeManifest,
    make_record: MakeRecord,
    write_store: Any,
    assert_same: Any,
    name: str,
    inputs: str,
) -> None:
    manifest = make_manifest(codecs=CODECS[name], more=MORE, shapes=SHAPES, inputs=inputs, num_samples=12, shard_size=5)
    zarr = write_store(tmp_path / "zarr", manifest, quarantine=(4,))
    convert_store(zarr, tmp_path / "tar", "webdataset")
    convert_store(tmp_path / "tar", tmp_path / "again", "zarr")
    for path in (zarr, tmp_path / "tar", tmp_path / "again"):
        reader = StoreReader(path)
        assert verify_store(path, deep=True).problems == [] and reader.manifest.more == MORE
        records = [make_record(manifest, index) for index in reader.dataset_index.tolist()]
        for found, expected in zip(reader, records, strict=True):
            assert_same(found, expected)
            found.recheck()
        assert reader.num_images.tolist() == [len(record.tokens_of_image) for record in records]
        assert reader.num_vision.tolist() == [sum(record.tokens_of_image) for record in records]
        assert reader.num_vision_top.tolist() == [
            0 if record.vision_top_index is None else len(record.vision_top_index) for record in records
        ]
        assert reader.sequence_lengths.tolist() == [record.sequence_length for record in records]
        assert reader.num_tokens.tolist() == reader.sequence_lengths.tolist()
        assert len({len(record.tokens_of_image) for record in records}) > 2
        stats, stated = store_stats(reader), stated_errors(reader, list(range(len(reader))))
        assert stats.overhead_bytes > 0 and stats.distinct_images == len(
            {(record.images, place) for record in records for place in range(record.num_images)}
        ) + _again(reader)
        assert {"more.deep", "more.hidden", "more.blind.logprobs"} < {bound.field for bound in stated.bounds}
    assert diff_stores(StoreReader(zarr), StoreReader(tmp_path / "tar")).fields == []
    assert StoreReader(zarr).root_hash() == StoreReader(tmp_path / "again").root_hash()
    assert {state.state for state in rebuild_indexes(tmp_path / "tar", write=False)} == {"sound"}
    assert check_plausibility(StoreReader(zarr).files).attention.rows > 0
    merge_stores([zarr, tmp_path / "tar"], tmp_path / "both", keep_first=True)
    merged = StoreReader(tmp_path / "both")
    assert merged.manifest.more == MORE and len(merged) == len(StoreReader(zarr)) == 11


def _again(reader: StoreReader) -> int:
    """Images that are stored again because another shard shows them too."""
    seen, again = set[str](), 0
    start = 0
    for commit in reader.commits:
        of_shard = {sha for record in reader[start : start + commit.num_records] for sha in record.image_sha256}
        again += len(of_shard & seen)
        seen |= of_shard
        start += commit.num_records
    return again


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(data=st.data())
def test_any_images_in_any_codec_come_back_from_both_layouts(
    tmp_path_factory: pytest.TempPathFactory, make_manifest: MakeManifest, assert_same: Any, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("ragged")
    sizes = data.draw(st.lists(st.lists(st.integers(1, 200), max_size=4), min_size=1, max_size=4))
    names = {target: st.sampled_from(codec_names(target)) for target in ("attention", "vision_top", "vision_all")}
    codecs = Codecs(**{name: data.draw(chosen) for name, chosen in names.items()}, logits=LogitsCodec(kind="none"))
    for backend in ("zarr", "webdataset"):
        manifest = make_manifest(
            codecs=codecs, shapes=SHAPES, backend=backend, num_samples=len(sizes), shard_size=len(sizes)
        )
        writer = open_writer(folder / backend, manifest)
        records = [_record(index, tuple(tokens)) for index, tokens in enumerate(sizes)]
        with writer.open_shard(0) as sink:
            for index in writer.planned_samples(0).tolist():
                sink.append(records[index])
            sink.commit()
        reader, codec = StoreReader(folder / backend), RecordCodec(manifest)
        assert verify_store(folder / backend, deep=True).ok
        for found in reader:
            given_record = records[found.index]
            assert found.tokens_of_image == given_record.tokens_of_image
            # what the codec makes of the values, without a store
            rows = codec.encode(given_record, with_image=True)
            assert_same(found, codec.decode(rows.__getitem__, codec.numbers(given_record)))


def _record(index: int, tokens: tuple[int, ...]) -> Record:
    """Images of these sizes between text, each followed by one text token; no labels: a question only."""
    rng, P = np.random.default_rng(index), sum(tokens)
    kinds = [0, *(kind for count in tokens for kind in [1] * count + [0]), 0, 0]
    vision = np.flatnonzero(kinds).astype(np.int32)
    top = rng.permutation(P)[:4].astype(np.uint16)
    targets: dict[str, Any] = {}
    if tokens:
        targets = {
            "attention": (rng.random((1, 3, 2, P)) / P).astype(np.float32),
            "vision_embeddings": tuple(rng.normal(size=(count, 6)).astype(np.float32) for count in tokens),
            "vision_top_index": top,
            "vision_top_embeddings": rng.normal(size=(len(top), 6)).astype(np.float32),
        }
    names = tuple(f"{index}-{number}" for number in range(len(tokens)))
    return Record(
        key=f"{index:064x}",
        id=str(index),
        index=index,
        conversations=[],
        images=names,
        image_sha256=tuple(hashlib.sha256(name.encode()).hexdigest() for name in names),
        input_ids=np.array(kinds, np.int32) + 5,
        labels=np.full(len(kinds), -100, np.int32),
        vision_positions=vision,
        tqv_query_positions=np.arange(len(kinds) - 3, len(kinds), dtype=np.int32) if tokens else vision,
        supervised_positions=vision[:0],
        tokens_of_image=tokens,
        **targets,
    )


@pytest.mark.parametrize("backend", ["zarr", "webdataset"])
@pytest.mark.parametrize("name", CODECS)
def test_the_files_are_predicted_to_the_byte(
    tmp_path: Path, make_manifest: MakeManifest, make_record: MakeRecord, write_store: Any, name: str, backend: str
) -> None:
    manifest = make_manifest(
        codecs=CODECS[name], more=MORE, shapes=SHAPES, backend=backend, inputs="embed", num_samples=12, shard_size=12
    )
    reader = StoreReader(write_store(tmp_path / "store", manifest))
    [commit] = reader.commits
    codec, columns, seen = RecordCodec(manifest), columns_of(manifest), set[tuple[str, ...]]()
    [groups] = [column.labels for column in columns if column.name == OFFSETS]
    rows: dict[str, list[int]] = {group: [] for group in ("record", *groups)}
    numbers = []
    for record in reader:
        encoded = codec.encode(record, with_image=record.image_sha256 not in seen)
        seen.add(record.image_sha256)
        numbers.append(codec.numbers(record))
        of_group = {column.group: len(encoded[column.name]) for column in columns if column.name in encoded}
        for group in rows:
            rows[group].append(of_group.get(group, 0))
    shard = ShardRows(
        groups={group: np.array(counts, np.int64) for group, counts in rows.items()},
        has_image=reader.has_image,
        widths=np.array([number["attention_columns"] for number in numbers]).clip(0),
        more_widths={
            field: np.array([number[field] for number in numbers]).clip(0)
            for field in ("deep_columns", "relations_columns")
        },
    )
    [predicted] = get_backend(backend).predicted_bytes(manifest, columns, [shard])
    written = {entry.path: entry.bytes for entry in commit.files}
    found = {path: size for path, size in predicted.files.items() if size}
    if backend == "zarr":
        assert {path: size for path, size in found.items() if "zarr.json" not in path} == {
            path: size for path, size in written.items() if "zarr.json" not in path
        }
        return
    assert found["00000000.idx"] == written["00000000.idx"]
    # a JSON with the names of records may need one more block
    assert written["00000000.tar"] - 512 * len(reader) <= found["00000000.tar"] <= written["00000000.tar"]


def test_images_that_need_other_numbers_of_tokens_are_stored_again(
    tmp_path: Path, make_manifest: MakeManifest, assert_same: Any
) -> None:
    """A model may cut an image into tiles if it is the only one: the same files, other tokens."""
    codecs = Codecs(attention="float32", vision_top="float32", vision_all="float32", logits=LogitsCodec(kind="none"))
    manifest = make_manifest(codecs=codecs, shapes=SHAPES, num_samples=2, shard_size=2)
    first = _record(0, (6, 2))
    second = _record(1, (3, 2))
    second = Record(**second.__dict__ | {"image_sha256": first.image_sha256})
    writer = open_writer(tmp_path / "store", manifest)
    with writer.open_shard(0) as sink:
        for index in writer.planned_samples(0).tolist():
            sink.append((first, second)[index])
        sink.commit()
    reader = StoreReader(tmp_path / "store")
    assert reader.commits[0].totals.images == 4
    for found in reader:
        every = (first, second)[found.index].vision_embeddings
        assert [image.tobytes() for image in found.vision_embeddings or ()] == [  # type: ignore[union-attr]
            image.tobytes()  # type: ignore[union-attr]
            for image in every or ()
        ]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"more": {}}, r"more\['deep'\] is absent, the record has 1 images"),
        ({"more": {"deep": None, "other": np.zeros(3, np.float32)}}, "more has 'other', the store keeps deep; give"),
        (
            {"more": {"deep": np.zeros((2, 4, 3), np.float32)}},
            r"more\['deep'\] has shape \(2, 4, 3\), the store expects",
        ),
        ({"more": {"deep": np.full((3, 4, 4), 3, np.float32)}}, r"more\['deep'\]: sqrt_u8 holds probabilities"),
    ],
)
def test_further_targets_that_do_not_fit_are_named(make_manifest: MakeManifest, change: Any, message: str) -> None:
    codecs = Codecs(attention="float32", vision_top="none", vision_all="none", logits=LogitsCodec(kind="none"))
    manifest = make_manifest(codecs=codecs, shapes=SHAPES, more=MORE[:1])
    fields = {**_record(0, (4,)).__dict__, "vision_embeddings": None, "vision_top_index": None}
    record = Record.trusted(fields | {"vision_top_embeddings": None} | change)
    with pytest.raises(StoreError, match=message):
        RecordCodec(manifest).encode(record, with_image=True)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"name": "labels"}, "its name is that of a column"),
        ({"name": "x_scale"}, "its name is that of a column or of a part of one"),
        ({"kind": "vision"}, "kind vision, rows record, source store belong to targets with settings"),
        ({"codec": "int8_channel"}, "kind values needs one of float32, float16, bfloat16, int8_group"),
        ({"codec": "int8_group"}, "codec int8_group needs a width"),
        ({"codec": None}, "codec of target x is None, its source is store: give one"),
        ({"kind": "attention", "codec": "sqrt_u8"}, "kind attention needs columns and heads, found None and None"),
        ({"columns": "text", "width": 4}, "width is 4, but columns text have the length"),
        ({"columns": "text", "rows": "image"}, "rows image are stored once for several texts"),
        ({"columns": "vision", "forward_pass": "without_image"}, "a pass without images has no rows record with"),
        ({"layers": (2, 1)}, r"layers of target x are \[2, 1\], expected rising numbers"),
        ({"kind": "logits"}, "kind logits needs the settings of logits and rows supervised"),
        ({"width": 1 << 26, "layers": (0, 1)}, "134217728 values in a stored row, at most 67108864"),
        ({"heads": 0}, "greater than or equal to 1"),
        ({"shape": 3}, "Extra inputs are not permitted"),
    ],
)
def test_targets_that_cannot_be_are_refused(make_manifest: MakeManifest, fields: Any, message: str) -> None:
    target = {"name": "x", "kind": "values", "codec": "float32", "rows": "record", **fields}
    with pytest.raises(ValueError, match=message):
        make_manifest(more=(target,))


def test_a_name_is_given_once(make_manifest: MakeManifest) -> None:
    with pytest.raises(ValueError, match="targets have the names deep, deep, expected each once"):
        make_manifest(more=(MORE[0], MORE[0]))


def test_another_target_is_another_store(tmp_path: Path, make_manifest: MakeManifest) -> None:
    open_writer(tmp_path / "store", make_manifest(more=MORE[:1]))
    changed = MORE[0].model_copy(update={"codec": "float16"})
    with pytest.raises(StoreError, match=r"targets.deep.codec is sqrt_u8 in the store, float16 asked for"):
        open_writer(tmp_path / "store", make_manifest(more=(changed,)))
    with pytest.raises(StoreError, match=r"targets.deep.codec is sqrt_u8 in the store, absent asked for"):
        open_writer(tmp_path / "store", make_manifest())


def test_attachments_may_lie_in_a_folder(tmp_path: Path, make_manifest: MakeManifest, write_store: Any) -> None:
    content = {"processor/tokenizer.json": b"{}", "processor/Chat-Template.jinja": b"x", "lm_head.safetensors": b"y"}
    named = {name: hashlib.sha256(data).hexdigest() for name, data in content.items()}
    manifest = make_manifest(attachments=named, num_samples=2)
    open_writer(tmp_path / "store", manifest, content)
    store = write_store(tmp_path / "store", manifest)
    convert_store(store, tmp_path / "tar", "webdataset")
    for path in (store, tmp_path / "tar"):
        assert verify_store(path, deep=True).ok
        assert {name: StoreReader(path).attachment(name).read_bytes() for name in content} == content
    (store / "attachments" / "processor" / "tokenizer.json").write_bytes(b"{ }")
    [problem] = verify_store(store).problems
    assert "attachments/processor/tokenizer.json" in problem.message
    for wrong in ("a/b/c", "/a", "a/", "a/.b", "../a", "a//b"):
        with pytest.raises(ValueError, match="String should match pattern"):
            make_manifest(attachments={wrong: "0" * 64})
    with pytest.raises(ValueError, match="attachments has 'a' as a file and as a folder"):
        make_manifest(attachments={"a": "0" * 64, "a/b": "0" * 64})
