"""Every file of a store cut, flipped, deleted, added or copied: deep verification names it, readers refuse it."""

import errno
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest

import alignkd.storage.files.local
from alignkd.storage import (
    CorruptStoreError,
    Manifest,
    Record,
    StoreError,
    StoreReader,
    list_shards,
    open_writer,
    verify_store,
)
from alignkd.storage.layouts.registry import get_backend
from alignkd.storage.schema.sealed_json import seal, unseal
from alignkd.storage.schema.shard_files import FOREIGN

MakeManifest = Callable[..., Manifest]


@pytest.fixture(scope="module", params=["zarr", "webdataset"])
def make_manifest(request: pytest.FixtureRequest, make_manifest: MakeManifest) -> MakeManifest:
    return partial(make_manifest, backend=request.param)


@pytest.fixture(scope="module")
def sound_store(
    tmp_path_factory: pytest.TempPathFactory, make_manifest: MakeManifest, write_store: Callable[..., Path]
) -> Path:
    """A store that no test may leave changed."""
    path = tmp_path_factory.mktemp("sound") / "store"
    return write_store(path, make_manifest(num_samples=6, shard_size=3, inputs="embed"), quarantine=(2,))


def files_of(store: Path) -> list[Path]:
    return sorted(path for path in store.rglob("*") if path.is_file())


def store_files_of(store: Path) -> set[Path]:
    """The files that only other software needs, to find the shards."""
    return {store / name for name in get_backend(StoreReader(store).manifest.backend).store_files}


def problems(store: Path, deep: bool = True) -> list[str]:
    return [problem.message for problem in verify_store(store, deep=deep).problems]


def names(messages: list[str], path: Path) -> bool:
    return any(str(path) in message for message in messages)


def test_a_sound_store_verifies(sound_store: Path) -> None:
    for deep in (False, True):
        report = verify_store(sound_store, deep=deep)
        assert report.ok and report.problems == []
        assert (report.num_shards, report.num_records) == (2, 5)
        on_disk = sum(path.stat().st_size for path in (sound_store / "shards").glob("*/**/*") if path.is_file())
        assert report.num_bytes == on_disk


def test_a_flipped_byte_of_every_file_is_named(sound_store: Path) -> None:
    """Two places in each file, one bit each; `test_every_flip` has the rest."""
    rng = np.random.default_rng(0)
    for path in files_of(sound_store):
        sound = path.read_bytes()
        for at in {int(rng.integers(len(sound))), len(sound) - 1}:
            path.write_bytes(sound[:at] + bytes([sound[at] ^ (1 << int(rng.integers(8)))]) + sound[at + 1 :])
            assert names(problems(sound_store), path), (path, at)
        path.write_bytes(sound)
    assert problems(sound_store) == []


def test_every_truncated_file_is_found(sound_store: Path) -> None:
    """Also without reading a byte of the payload, and by the reader when the store is opened."""
    not_read = store_files_of(sound_store)
    for path in files_of(sound_store):
        sound = path.read_bytes()
        for size in (0, len(sound) // 2, len(sound) - 1):
            path.write_bytes(sound[:size])
            assert names(problems(sound_store, deep=False), path), (path, size)
            if path in not_read:
                assert len(StoreReader(sound_store)) == 5
                continue
            with pytest.raises(CorruptStoreError, match=path.name):
                StoreReader(sound_store)
        path.write_bytes(sound)
    assert problems(sound_store) == []


def test_every_deleted_file_is_found(sound_store: Path) -> None:
    not_read = store_files_of(sound_store)
    for path in files_of(sound_store):
        sound = path.read_bytes()
        path.unlink()
        committed = path.parent.name == "commits"
        found = problems(sound_store, deep=False)
        assert any("not committed" in message for message in found) if committed else names(found, path)
        if path in not_read:
            assert len(StoreReader(sound_store)) == 5
            open_writer(sound_store, StoreReader(sound_store).manifest)  # a writer writes it again
            assert path.read_bytes() == sound
            continue
        with pytest.raises(StoreError, match="1 of 2 shards committed" if committed else path.name):
            StoreReader(sound_store)
        path.write_bytes(sound)
    assert problems(sound_store) == []


def test_a_flip_in_a_payload_is_found_on_reading(small_store: Path) -> None:
    reader = StoreReader(small_store)
    zarr = reader.manifest.backend == "zarr"
    path = small_store / "shards/00000001" / ("attention/c.0.0.0" if zarr else "00000001.tar")
    data = bytearray(path.read_bytes())
    # data of the first member of that name
    data[5 if zarr else data.index(b".attention.npy") // 512 * 512 + 512 + 128 + 5] ^= 1
    path.write_bytes(data)
    first = reader.commits[0].num_records
    where = r"c.0.0.0: shard 1, array attention, chunk 0" if zarr else r"tar: shard 1, record \d, member attention"
    for _ in range(2):
        with pytest.raises(
            CorruptStoreError, match=rf"{where}: crc32c is \w+, (stored|indexed) \w+; restore the shard"
        ):
            for place in range(first, first + reader.commits[1].num_records):
                reader[place]


def test_a_deleted_shard_is_found(small_store: Path) -> None:
    shutil.rmtree(small_store / "shards" / "00000002")
    assert names(problems(small_store, deep=False), small_store / "shards" / "00000002")
    with pytest.raises(CorruptStoreError, match=r"shard 2: .*No such file or directory; restore it from a copy"):
        StoreReader(small_store)


def test_a_shard_without_a_commit_does_not_exist(small_store: Path) -> None:
    (small_store / "commits" / "00000002.json").unlink()
    assert [info.shard for info in list_shards(small_store) if not info.committed] == [2]
    assert problems(small_store) == ["shard 2: not committed; run `alignkd dump` again"]


def test_a_doubled_file_in_a_shard_is_found(sound_store: Path) -> None:
    """Under a name that another reader might take for a chunk or a shard; ours never looks at it."""
    for path in files_of(sound_store / "shards" / "00000000"):
        double = path.with_name(path.name.replace("0.0", "0.1") if "0.0" in path.name else f"1{path.name}")
        shutil.copy(path, double)
        assert problems(sound_store) == [f"{double}: {FOREIGN}"]
        assert len(read_all(sound_store)) == 5
        double.unlink()


def read_all(store: Path) -> list[Record]:
    reader = StoreReader(store)
    return [reader[place] for place in range(len(reader))]


@pytest.mark.parametrize("copy", ["00000001", "00000003"])
def test_a_copied_commit_record_is_refused(small_store: Path, copy: str) -> None:
    message = "is the record of shard 0"
    commits = small_store / "commits"
    shutil.copy(commits / "00000000.json", commits / f"{copy}.json")
    assert any(message in problem for problem in problems(small_store, deep=False))
    with pytest.raises(StoreError, match=rf"{copy}.json: {message}"):
        StoreReader(small_store)


def test_a_shard_outside_the_plan_is_refused(small_store: Path) -> None:
    """As left by a store that once was larger; sealed well, so only the plan tells."""
    commits = small_store / "commits"
    (commits / "00000009.json").write_bytes(seal({**unseal(commits / "00000000.json"), "shard": 9}))
    shutil.copytree(small_store / "shards" / "00000000", small_store / "shards" / "00000009")
    assert any("shard 9: the plan has 3 shards" in problem for problem in problems(small_store))
    with pytest.raises(CorruptStoreError, match=r"shard 9: accounts for \d samples, the plan has 0"):
        StoreReader(small_store)


def test_a_commit_that_loses_samples_is_refused(small_store: Path) -> None:
    path = small_store / "commits" / "00000000.json"
    path.write_bytes(seal({**unseal(path), "quarantined": [], "num_records": 1}))
    expected = "shard 0: accounts for 1 samples, the plan has 4"
    assert any(expected in problem for problem in problems(small_store, deep=False))
    with pytest.raises(CorruptStoreError, match=expected):
        StoreReader(small_store)


def test_swapped_shards_are_found(
    tmp_path: Path, make_manifest: MakeManifest, write_store: Callable[..., Path]
) -> None:
    """Two shards exchanged with freshly sealed records: sizes and checksums fit, the samples do not."""
    store = write_store(tmp_path / "store", make_manifest(num_samples=6, shard_size=3))
    shards, commits = store / "shards", store / "commits"
    names_of = [f"{n:08d}" for n in (0, 1)]
    sealed = [unseal(commits / f"{name}.json") for name in names_of]
    for n, (name, other) in enumerate(zip(names_of, names_of[::-1], strict=True)):
        files = [{**entry, "path": entry["path"].replace(other, name)} for entry in sealed[1 - n]["files"]]
        (commits / f"{name}.json").write_bytes(seal({**sealed[1 - n], "shard": n, "folder": name, "files": files}))
        for path in (shards / name).glob(f"{name}.*"):  # a tar is named like its shard
            path.rename(path.with_stem(other))
    (shards / names_of[0]).rename(shards / "x")
    (shards / names_of[1]).rename(shards / names_of[0])
    (shards / "x").rename(shards / names_of[1])
    assert problems(store, deep=False) == []
    found = problems(store)
    assert len(found) == 2 and all("the plan lists" in message for message in found)


def test_a_file_of_another_shard_is_found(
    tmp_path: Path, make_manifest: MakeManifest, make_record: Callable[..., Record], write_store: Callable[..., Path]
) -> None:
    """Same size, every checksum inside the file right: neither verify nor the reader takes it for the shard's own."""
    manifest = make_manifest(num_samples=6, shard_size=3)
    some = make_record(manifest, 0)

    def record_of(index: int) -> Record:
        attention = None if some.attention is None else some.attention + np.float16(index)
        key, ids = f"{index:064x}", np.where(some.input_ids > 0, index + 1, some.input_ids)
        return replace(some, index=index, id=f"{index}", key=key, input_ids=ids, attention=attention)

    store = write_store(tmp_path / "store", manifest, record_of=record_of)
    compared = 0
    for one in files_of(store / "shards" / "00000000"):
        other = Path(str(one).replace("00000000", "00000001"))
        sound = other.read_bytes()
        assert len(sound) == one.stat().st_size
        if sound != one.read_bytes():
            shutil.copy(one, other)
            assert names(problems(store), other)
            with pytest.raises(CorruptStoreError):
                read_all_and_tables(store)
            other.write_bytes(sound)
            compared += 1
    assert compared >= 2 and problems(store) == []


def read_all_and_tables(store: Path) -> None:
    assert len(StoreReader(store).keys) == len(StoreReader(store).ids) == len(read_all(store))


def test_verify_of_no_store_reports_it(tmp_path: Path) -> None:
    report = verify_store(tmp_path, deep=True)
    assert not report.ok and "is this the folder of a store?" in report.problems[0].message


def test_list_shards_counts(small_store: Path) -> None:
    infos = list_shards(small_store)
    reader = StoreReader(small_store)
    assert [info.planned for info in infos] == [4, 4, 2]
    assert sum(info.num_records for info in infos) == len(reader) == 8
    assert sum(info.num_quarantined for info in infos) == 2
    assert sum(info.num_tokens for info in infos) == reader.num_tokens.sum()
    assert sum(info.num_supervised for info in infos) == reader.num_supervised.sum()
    on_disk = sum(path.stat().st_size for path in (small_store / "shards").glob("*/**/*") if path.is_file())
    assert sum(info.num_bytes for info in infos) == on_disk


def test_a_disk_that_fails_is_named_with_its_file(sound_store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Other files are still verified."""
    broken, other = [path for path in files_of(sound_store) if "shards" in path.parts][:2]
    sha256 = alignkd.storage.files.local.file_sha256

    def failing(path: Path) -> str:
        if path == broken:
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))
        return sha256(path) if path != other else "0" * 64

    monkeypatch.setattr(alignkd.storage.files.local, "file_sha256", failing)
    found = sorted(problems(sound_store), key=lambda line: not line.startswith(f"{broken}: "))
    assert len(found) == 2 and all("\n" not in line for line in found)
    assert found[0].startswith(f"{broken}: Input/output error; the disk, the file server")
    assert found[1].startswith(f"{other}: sha256 is 000000000000, committed ")
