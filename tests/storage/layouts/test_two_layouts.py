"""One store, two layouts: converting there and back changes nothing; attachments; the root hash."""

import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alignkd.storage import (
    Codecs,
    CorruptStoreError,
    LogitsCodec,
    Manifest,
    Record,
    StoreError,
    StoreReader,
    open_writer,
    verify_store,
)
from alignkd.storage.read.listing import list_store
from alignkd.storage.schema.sealed_json import seal, unseal

MakeManifest = Callable[..., Manifest]
BACKENDS = ("zarr", "webdataset")
COMPACT = Codecs(
    attention="sqrt_u8", vision_top="from_all", vision_all="int8_channel", logits=LogitsCodec(kind="topk", top_k=3)
)
WIDE = Codecs(attention="float32", attention_pairs="tqt", vision_all="none", logits=LogitsCodec(kind="full"))
BF16 = Codecs(attention="bfloat16", attention_pairs="vqv", vision_top="bfloat16", logits=LogitsCodec(kind="none"))


def copied(path: Path, source: StoreReader, manifest: Manifest) -> StoreReader:
    """A store of the same records and quarantined samples with another manifest."""
    writer = open_writer(path, manifest)
    quarantined = {sample.index: sample for sample in source.quarantined}
    for shard in writer.pending_shards():
        with writer.open_shard(shard) as sink:
            for index in writer.planned_samples(shard).tolist():
                if index in quarantined:
                    sink.quarantine(index, quarantined[index].id, quarantined[index].reason)
                else:
                    sink.append(source[source.find(index=index)[0]])
            sink.commit()
    return StoreReader(path)


@settings(max_examples=6)
@given(
    codecs=st.sampled_from([COMPACT, WIDE, BF16]),
    inputs=st.sampled_from(["reference", "embed"]),
    num_samples=st.integers(1, 6),
    shard_size=st.integers(2, 6),
    quarantine=st.sets(st.integers(0, 8), max_size=3),
    first=st.sampled_from(BACKENDS),
)
def test_there_and_back_is_the_same_store(
    tmp_path_factory: pytest.TempPathFactory,
    make_manifest: MakeManifest,
    write_store: Callable[..., Path],
    assert_same: Callable[[Record, Record], None],
    codecs: Codecs,
    inputs: str,
    num_samples: int,
    shard_size: int,
    quarantine: set[int],
    first: str,
) -> None:
    folder = tmp_path_factory.mktemp("layouts")
    fields = {"codecs": codecs, "inputs": inputs, "num_samples": num_samples, "shard_size": shard_size}
    [second] = set(BACKENDS) - {first}
    one = StoreReader(write_store(folder / "one", make_manifest(backend=first, **fields), quarantine=quarantine))
    two = copied(folder / "two", one, make_manifest(backend=second, **fields))
    back = copied(folder / "back", two, one.manifest)
    assert back.root_hash() == one.root_hash() != two.root_hash()
    assert list(two.ids) == list(one.ids) and list(two.keys) == list(one.keys)
    assert (two.sequence_lengths == one.sequence_lengths).all() and (two.has_image == one.has_image).all()
    for place in range(len(one)):
        assert_same(two[place], one[place])
    assert verify_store(folder / "two", deep=True).problems == []
    shutil.rmtree(folder)


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_root_hash_ignores_who_wrote_and_sees_every_value(
    tmp_path: Path, make_manifest: MakeManifest, write_store: Callable[..., Path], backend: str
) -> None:
    path = write_store(tmp_path / "store", make_manifest(backend=backend, created_with={"host": "a"}), quarantine=(4,))
    found = list_store(path).root_hash
    assert found == StoreReader(path).root_hash()
    other = make_manifest(backend=backend, created_with={"host": "b"})
    assert found == StoreReader(write_store(tmp_path / "other", other, quarantine=(4,))).root_hash()
    less = write_store(tmp_path / "less", other, quarantine=(4, 5))
    assert StoreReader(less).root_hash() != found
    for commit in (path / "commits").iterdir():
        document = unseal(commit)
        for sample in document["quarantined"]:
            sample["reason"] = "/another/folder: image is damaged"
        commit.write_bytes(seal(document))
    assert StoreReader(path).root_hash() == found
    document["files"][-1]["sha256"] = "0" * 64
    commit.write_bytes(seal(document))
    assert StoreReader(path).root_hash() != found


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_reader_sees_what_is_committed_when_it_opens(
    tmp_path: Path,
    make_manifest: MakeManifest,
    write_store: Callable[..., Path],
    make_record: Callable[..., Record],
    assert_same: Callable[[Record, Record], None],
    backend: str,
) -> None:
    """While a writer is in the middle of the next shard, and after it has committed."""
    manifest = make_manifest(backend=backend)
    path = write_store(tmp_path / "store", manifest, shards=[1])
    writer = open_writer(path, manifest)
    with writer.open_shard(0) as sink:
        for index in writer.planned_samples(0).tolist():
            reader = StoreReader(path, allow_incomplete=True)
            assert len(reader) == 4 and verify_store(path).num_shards == 1
            for place in range(4):
                assert_same(reader[place], make_record(manifest, int(reader.dataset_index[place])))
            sink.append(make_record(manifest, index))
        sink.commit()
    assert len(reader) == 4 and sorted(reader.dataset_index) == sorted(writer.planned_samples(1))
    assert len(StoreReader(path, allow_incomplete=True)) == 8


def attached(make_manifest: MakeManifest, **contents: bytes) -> tuple[Manifest, dict[str, bytes]]:
    named = {name.replace("__", "."): data for name, data in contents.items()}
    sha256 = {name: hashlib.sha256(data).hexdigest() for name, data in named.items()}
    return make_manifest(num_samples=2, attachments=sha256), named


def test_attachments_travel_with_the_store(
    tmp_path: Path, make_manifest: MakeManifest, write_store: Callable[..., Path]
) -> None:
    manifest, contents = attached(make_manifest, tokenizer__model=b"pieces", lm_head__safetensors=b"weights" * 1000)
    (tmp_path / "head").write_bytes(contents["lm_head.safetensors"])
    given = {**contents, "lm_head.safetensors": tmp_path / "head"}
    open_writer(tmp_path / "store", manifest, given)
    path = write_store(tmp_path / "store", manifest)  # goes on without being given them again
    reader = StoreReader(path)
    for name, data in contents.items():
        assert reader.attachment(name).read_bytes() == data
    assert verify_store(path, deep=True).ok
    with pytest.raises(StoreError, match=r"no attachment 'x', it has \['lm_head.safetensors', 'tokenizer.model'\]"):
        reader.attachment("x")
    target = path / "attachments" / "tokenizer.model"
    target.write_bytes(b"Pieces")
    with pytest.raises(CorruptStoreError, match=r"tokenizer.model: sha256 is \w+, expected \w+; restore it"):
        StoreReader(path).attachment("tokenizer.model")
    assert [str(target) in problem.message for problem in verify_store(path).problems] == [True]
    with pytest.raises(
        StoreError,
        match=r"tokenizer.model: is missing or damaged; give the attachment 'tokenizer.model' to the writer again",
    ):
        open_writer(path, manifest)
    open_writer(path, manifest, contents)
    assert StoreReader(path).attachment("tokenizer.model").read_bytes() == b"pieces"


def test_a_store_without_its_attachments_is_not_begun(tmp_path: Path, make_manifest: MakeManifest) -> None:
    manifest, contents = attached(make_manifest, a__model=b"one")
    for contents_given, message in (
        ({}, "a.model: is missing or damaged"),
        ({"a.model": b"two"}, r"attachment a.model: sha256 is \w+, expected "),
        ({**contents, "b": b""}, r"attachment 'b' is given, the manifest names \['a.model'\]"),
    ):
        with pytest.raises(StoreError, match=message):
            open_writer(tmp_path / "store", manifest, contents_given)
        assert not (tmp_path / "store" / "manifest.json").exists()
