"""The manifest: what is refused, and that the message names both values and the next step."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from alignkd.storage import (
    Codecs,
    LogitsCodec,
    Manifest,
    Shapes,
    StoreError,
    StoreReader,
    check_fingerprint,
    open_writer,
    verify_store,
)
from alignkd.storage.places import load_manifest
from alignkd.storage.read.listing import list_store
from alignkd.storage.schema.sealed_json import seal, unseal
from alignkd.storage.tools.convert import convert_store

MakeManifest = Callable[..., Manifest]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_shards": 3}, "Extra inputs are not permitted"),
        ({"seed": -1}, "greater than or equal to 0"),
        ({"backend": "../tar"}, "String should match pattern"),
        ({"inputs": "link"}, "Input should be 'reference' or 'embed'"),
        ({"shapes": Shapes(num_heads=2, hidden_size=6, vision_tokens=5, vocab_size=40)}, "vision_top_tokens is 16"),
    ],
)
def test_settings_that_cannot_be_are_refused(make_manifest: MakeManifest, fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        make_manifest(**fields)


def test_the_hash_is_pinned_and_ignores_who_wrote(make_manifest: MakeManifest) -> None:
    """Commit records and student checkpoints carry this hash: it must not change between versions."""
    plain = make_manifest().manifest_hash()
    assert plain == PINNED
    assert make_manifest(created_with={"alignkd": "0.2"}).manifest_hash() == plain
    assert make_manifest(seed=2).manifest_hash() != plain
    assert make_manifest(schema_version=2).manifest_hash() == PINNED_SCHEMA2


PINNED = "512779db5c18965d69a80dc1273ad1afb9b0a2b8d6fd440fedb7cbcabfe5a4b3"
PINNED_SCHEMA2 = "74af3545b283b3177f5c40c16920ee7ddea64680a72ca9d18cd3fdc429e80167"


def test_other_settings_are_refused_with_every_difference(tmp_path: Path, make_manifest: MakeManifest) -> None:
    path = tmp_path / "store"
    open_writer(path, make_manifest())
    codecs = Codecs(attention="float32", vision_top="float16", vision_all="float16", logits=LogitsCodec(kind="none"))
    other = make_manifest(seed=7, codecs=codecs, fingerprint={"weights": "w1", "tokenizer": "t0", "dtype": "fp16"})
    with pytest.raises(StoreError) as caught:
        open_writer(path, other)
    assert str(caught.value) == (
        f"store {path} was made with other settings: "
        "codecs.attention is float16 in the store, float32 asked for; "
        "codecs.logits.dtype is float16 in the store, None asked for; "
        "codecs.logits.kind is topk in the store, none asked for; "
        "codecs.logits.top_k is 3 in the store, None asked for; "
        "fingerprint.dtype is absent in the store, fp16 asked for; "
        "fingerprint.weights is w0 in the store, w1 asked for; "
        "seed is 1 in the store, 7 asked for; "
        "choose another path or delete the store"
    )


def test_another_version_of_the_writer_may_go_on(tmp_path: Path, make_manifest: MakeManifest) -> None:
    open_writer(tmp_path / "store", make_manifest(created_with={"alignkd": "0.1"}))
    writer = open_writer(tmp_path / "store", make_manifest(created_with={"alignkd": "0.2"}))
    assert writer.pending_shards() == [0, 1, 2]
    assert load_manifest(tmp_path / "store").created_with == {"alignkd": "0.1"}


def test_a_folder_that_is_something_else_is_left_alone(tmp_path: Path, make_manifest: MakeManifest) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(
        StoreError, match=r"holds 'thesis.tex' but no manifest.json, so it is not a store; choose another"
    ):
        open_writer(tmp_path, make_manifest())
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_path_that_cannot_be_a_folder_is_one_line(tmp_path: Path, make_manifest: MakeManifest) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match=r"file/store: Not a directory .* a part of the path is a file, not a folder"):
        open_writer(tmp_path / "file" / "store", make_manifest())


@pytest.mark.parametrize("version", [1, 4])
def test_another_schema_is_refused_with_both_versions(small_store: Path, version: int) -> None:
    path = small_store / "manifest.json"
    path.write_bytes(seal({**unseal(path), "schema_version": version}))
    with pytest.raises(StoreError) as caught:
        StoreReader(small_store)
    assert str(caught.value) == (
        f"{path}: schema_version is {version}, this alignkd reads 2 and 3; open the store with the alignkd that wrote "
        "it, or dump the targets again"
    )


def test_an_unknown_layout_is_refused_by_writers_and_readers(
    tmp_path: Path, small_store: Path, make_manifest: MakeManifest
) -> None:
    rest = "backend is 'hdf5', this alignkd has zarr, webdataset; choose one of these, or open the store with the"
    with pytest.raises(StoreError, match=f"store {tmp_path / 'new'}: {rest}"):
        open_writer(tmp_path / "new", make_manifest(backend="hdf5"))
    assert not (tmp_path / "new").exists()
    path = small_store / "manifest.json"
    path.write_bytes(seal({**unseal(path), "backend": "hdf5"}))
    for opened in (StoreReader, list_store, lambda store: convert_store(store, tmp_path / "new", "zarr")):
        with pytest.raises(StoreError, match=f"{path}: {rest}"):
            opened(small_store)
    assert [problem.message for problem in verify_store(small_store).problems] == [
        f"{path}: {rest} alignkd that wrote it"
    ]


def test_an_edited_manifest_is_found(small_store: Path) -> None:
    path = small_store / "manifest.json"
    document = json.loads(path.read_text())
    document["fingerprint"]["weights"] = "w9"
    path.write_text(json.dumps(document, indent=1, sort_keys=True) + "\n")
    with pytest.raises(StoreError, match=r"manifest.json: damaged, crc32c is \w{8}, content gives \w{8}"):
        StoreReader(small_store)


def test_commits_of_another_store_are_refused(
    tmp_path: Path, small_store: Path, make_manifest: MakeManifest, write_store: Callable[..., Path]
) -> None:
    other = write_store(tmp_path / "other", make_manifest(seed=5))
    commit = small_store / "commits" / "00000001.json"
    commit.write_bytes((other / "commits" / "00000001.json").read_bytes())
    with pytest.raises(StoreError, match=r"00000001.json: was committed for manifest \w{12}, the store's is \w{12}"):
        StoreReader(small_store)


def test_the_fingerprint_check_names_both_values(small_store: Path) -> None:
    reader = StoreReader(small_store)
    check_fingerprint(reader, {"tokenizer": "t0"})
    check_fingerprint(reader, {})
    with pytest.raises(StoreError) as caught:
        check_fingerprint(reader, {"tokenizer": "t1", "template": "v1", "weights": "w0"})
    assert str(caught.value) == (
        f"store {small_store} does not fit this student: tokenizer is t0 in the store, t1 in the student; "
        "template is not recorded in the store, v1 in the student; "
        "give the student the teacher's settings and processor files, or dump again with the student's"
    )


def test_an_index_is_shown_with_its_data_set_where_there_are_several(make_manifest: MakeManifest) -> None:
    manifest = make_manifest(num_samples=5)
    assert manifest.shown_index(3) == "index 3"
    sources = [{"name": "a", "num_samples": 2}, {"name": "b", "num_samples": 3}]
    manifest = manifest.changed(sources=sources)
    found = [manifest.shown_index(index) for index in (0, 1, 2, 4, 5)]
    assert found == [
        "index 0, data set a",
        "index 1, data set a",
        "index 2, data set b",
        "index 4, data set b",
        "index 5",
    ]
