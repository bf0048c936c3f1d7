"""Tar shards: other people's readers read them, the index can be made again, planted members are refused."""

import hashlib
import io
import json
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alignkd.storage import CorruptStoreError, Manifest, Record, StoreError, StoreReader, verify_store
from alignkd.storage.layouts.tar.format import image_suffix, member_header, npy_header
from alignkd.storage.layouts.tar.rebuild import rebuild_index
from alignkd.storage.schema.sealed_json import seal, unseal

MakeManifest = Callable[..., Manifest]
TAR = "shards/00000000/00000000.tar"
IMAGES = {
    "jpg": b"\xff\xd8\xff\xe0",
    "png": b"\x89PNG\r\n\x1a\n",
    "gif": b"GIF89a",
    "webp": b"RIFF\x00\x00\x00\x00WEBP",
    "bmp": b"BM",
    "tif": b"II*\x00",
    "bin": b"scene",
}


@pytest.fixture
def store(tmp_path: Path, make_manifest: MakeManifest, write_store: Callable[..., Path]) -> Path:
    return write_store(tmp_path / "store", make_manifest(backend="webdataset", inputs="embed", shard_size=10))


def test_stock_webdataset_reads_every_array_as_we_do(store: Path) -> None:
    import webdataset  # type: ignore[import-untyped]  # imports torch

    reader = StoreReader(store)
    samples = list(webdataset.WebDataset(str(store / TAR), shardshuffle=False, empty_check=False))
    assert len(samples) == len(reader) == 10
    by_name = {sample["__key__"]: sample for sample in samples}
    for sample, record in zip(samples, (reader[place] for place in range(10)), strict=True):
        fields = json.loads(sample["json"])
        assert (fields["key"], fields["id"], fields["index"]) == (record.key, record.id, record.index)
        assert (fields["conversations"], fields["image"]) == (record.conversations, *(record.images or (None,)))
        assert sample["__key__"] == f"{record.index:09d}"
        arrays = {name[:-4]: np.load(io.BytesIO(data)) for name, data in sample.items() if name.endswith(".npy")}
        for name in ("input_ids", "labels", "vision_positions", "tqv_query_positions", "supervised_positions"):
            assert (arrays[name] == getattr(record, name)).all(), name
        assert (arrays["tail_logmass"] == record.logits.tail_logmass).all()  # type: ignore[union-attr]
        assert (arrays["entry_ids"] == record.logits.ids).all()  # type: ignore[union-attr]
        if not record.has_image:
            assert fields["image_record"] is None and "attention" not in arrays
            continue
        assert (arrays["attention"] == record.attention[0]).all()  # type: ignore[index]
        for name in ("vision_top_index", "vision_top_embeddings"):
            assert (arrays[name] == getattr(record, name)).all(), name
        source = by_name[fields["image_record"]]
        embeddings = np.load(io.BytesIO(source["vision_embeddings.npy"]))
        assert (embeddings == record.vision_embeddings[0]).all()  # type: ignore[index]
        assert (source["bin"],) == record.image_bytes
    assert sum("vision_embeddings.npy" in sample for sample in samples) == 5


def test_tar_and_tarfile_list_it_alike(store: Path) -> None:
    listed = subprocess.run(["tar", "tf", store / TAR], capture_output=True, text=True, check=True)
    with tarfile.open(store / TAR) as tar:
        members = tar.getmembers()
    assert listed.stdout.split() == [member.name for member in members] and listed.stderr == ""
    assert (members[0].name, members[-1].name) == ("__store__/manifest.json", "__end__/counts.json")
    assert {(m.mtime, m.uid, m.gid, m.mode, m.uname) for m in members} == {(0, 0, 0, 0o644, "")}
    assert all((m.offset_data + 128) % 64 == 0 for m in members)


@pytest.mark.parametrize("suffix", IMAGES)
def test_an_image_is_named_by_how_it_begins(
    tmp_path: Path,
    make_manifest: MakeManifest,
    make_record: Callable[..., Record],
    write_store: Callable[..., Path],
    suffix: str,
) -> None:
    data = IMAGES[suffix] + b" and the rest"
    assert image_suffix(data) == suffix
    manifest = make_manifest(backend="webdataset", inputs="embed", num_samples=2, shard_size=2)
    sha256 = hashlib.sha256(data).hexdigest()
    store = write_store(
        tmp_path / "s",
        manifest,
        record_of=lambda index: make_record(manifest, index, image_bytes=(data,), image_sha256=(sha256,)),
    )
    with tarfile.open(store / TAR) as tar:
        assert sum(name.endswith(f".{suffix}") for name in tar.getnames()) == 1
    assert [record.image_bytes for record in (StoreReader(store)[0], StoreReader(store)[1])] == [(data,), (data,)]
    assert rebuild_index(store / TAR) == (store / TAR).with_suffix(".idx").read_bytes()


@pytest.mark.parametrize("shape", [(), (0,), (7,), (130, 32, 144), (1, 2**40, 2**40)])
@pytest.mark.parametrize("dtype", ["<f2", "|u1", "<i8"])
def test_npy_headers_are_what_numpy_reads(dtype: str, shape: tuple[int, ...]) -> None:
    header = io.BytesIO(npy_header(np.dtype(dtype), shape))
    assert np.lib.format.read_magic(header) == (1, 0)
    assert np.lib.format.read_array_header_1_0(header) == (shape, False, np.dtype(dtype))
    assert header.tell() == 128


@pytest.mark.parametrize("settings", [{}, {"inputs": "embed"}, {"num_samples": 3, "shard_size": 1}])
def test_the_index_can_be_made_again_from_the_tar(
    tmp_path: Path, make_manifest: MakeManifest, write_store: Callable[..., Path], settings: dict[str, object]
) -> None:
    store = write_store(tmp_path / "s", make_manifest(backend="webdataset", **settings), quarantine=(1,))
    for tar in store.rglob("*.tar"):
        assert rebuild_index(tar) == tar.with_suffix(".idx").read_bytes()


def members_of(tar: Path) -> list[tuple[str, int, int]]:
    """Name, first byte of the header and end of the padding of each member."""
    with tarfile.open(tar) as opened:
        return [(m.name, m.offset, m.offset_data + -(-m.size // 512) * 512) for m in opened.getmembers()]


def test_a_tar_cut_between_members_is_refused(store: Path) -> None:
    """Other readers take it for a normal end."""
    tar = store / TAR
    sound = tar.read_bytes()
    ends = [end for _, _, end in members_of(tar)]
    for end in [*ends[::7], ends[-2], ends[-1], ends[-1] + 512]:
        tar.write_bytes(sound[:end])
        with pytest.raises(CorruptStoreError, match=rf"holds {end} bytes, committed {len(sound)}"):
            StoreReader(store)
        with pytest.raises(CorruptStoreError, match=r"00000000.tar: .*restore the tar"):
            rebuild_index(tar)


def plant(name: str, content: bytes, kind: bytes = tarfile.REGTYPE) -> bytes:
    member = tarfile.TarInfo(name)
    member.size, member.type = (0 if kind == tarfile.SYMTYPE else len(content)), kind
    member.linkname = "/etc/passwd" if kind == tarfile.SYMTYPE else ""
    header = member.tobuf(tarfile.USTAR_FORMAT)
    return header if kind == tarfile.SYMTYPE else header + content + bytes(-len(content) % 512)


def object_array() -> bytes:
    data = io.BytesIO()
    np.save(data, np.array([Bomb()], object), allow_pickle=True)
    return data.getvalue()


class Bomb:
    """Says so when it is unpickled."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return exec, ("raise SystemExit('a planted member was executed')",)


PLANTED = {
    "pickle": plant("000000000.evil.pkl", b"cos\nsystem\n(S'touch pwned'\ntR."),
    "object array": plant("000000000.input_ids.npy", object_array()),
    "traversal": plant("../../000000000.labels.npy", b"x"),
    "absolute": plant("/000000000.labels.npy", b"x"),
    "link": plant("000000000.labels.npy", b"", tarfile.SYMTYPE),
    "device": plant("000000000.labels.npy", b"", tarfile.CHRTYPE),
    "python": plant("000000000.pyd", b"raise SystemExit"),
    "too large": member_header("000000000.labels.npy", 2**32),
    "shell": plant("000000000.`reboot`.npy", b"x"),
    "line break": plant("000000000.a\nb.npy", b"x"),
}


@pytest.mark.parametrize("planted", PLANTED.values(), ids=PLANTED)
@pytest.mark.parametrize("instead", [False, True], ids=["beside", "instead"])
def test_planted_members_are_refused(store: Path, planted: bytes, instead: bool) -> None:
    """Also where the attacker seals size and checksum of the tar anew: the reader's index has no place for it."""
    tar, commit = store / TAR, store / "commits/00000000.json"
    sound = tar.read_bytes()
    _, start, end = members_of(tar)[2]
    tar.write_bytes(sound[:start] + planted + (sound[end:] if instead else sound[start:]))
    document = unseal(commit)
    for entry in document["files"]:
        if entry["path"].endswith(".tar"):
            entry |= {"bytes": tar.stat().st_size, "sha256": hashlib.sha256(tar.read_bytes()).hexdigest()}
    commit.write_bytes(seal(document))
    with pytest.raises(CorruptStoreError, match=r"00000000\.(tar|idx): ") as caught:
        reader = StoreReader(store)
        for place in range(len(reader)):
            reader[place]
    assert len(str(caught.value).splitlines()) == 1
    assert not verify_store(store, deep=True).ok
    with pytest.raises(StoreError, match=r"00000000\.tar: ") as caught:
        rebuild_index(tar)
    assert len(str(caught.value).splitlines()) == 1


@settings(max_examples=200)
@given(
    name=st.text(st.characters(min_codepoint=33, max_codepoint=126, exclude_characters="/"), min_size=1, max_size=99),
    size=st.integers(0, 2**33 - 1),
)
def test_headers_are_those_of_tarfile(name: str, size: int) -> None:
    member = tarfile.TarInfo(name)
    member.size = size
    assert member_header(name, size) == member.tobuf(tarfile.USTAR_FORMAT, "ascii", "strict")


@pytest.mark.parametrize("name", ["folder/" + "n" * 96, "é", "n" * 101, "n" * 100])
def test_long_and_strange_names(name: str) -> None:
    member = tarfile.TarInfo(name)
    try:
        expected = member.tobuf(tarfile.USTAR_FORMAT, "ascii", "strict")
    except ValueError:
        with pytest.raises(StoreError, match="the zarr backend has no such limit"):
            member_header(name, 0)
    else:
        assert member_header(name, 0) == expected
    with pytest.raises(StoreError, match=r"8589934592 bytes.*no such limit"):
        member_header("name", 2**33)
