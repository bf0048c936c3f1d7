"""Every byte of a store flipped, one bit each: reading the records names the damage and never gives a wrong value.

Exhaustive where a few bytes decide much (manifest, commit records, indices, tar headers); one byte in STRIDE elsewhere.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest

from alignkd.storage import CorruptStoreError, Manifest, Record, StoreError, StoreReader, verify_store
from alignkd.storage.files.local import LocalFiles
from alignkd.storage.layouts.registry import get_backend
from alignkd.storage.layouts.tar.index import parse_index
from alignkd.storage.layouts.zarr.reader import ZarrSource
from alignkd.storage.schema.commit_record import load_commit
from alignkd.storage.schema.sealed_json import unseal_bytes

MakeManifest = Callable[..., Manifest]
STRIDE = 499


@pytest.fixture(scope="module")
def stores(
    tmp_path_factory: pytest.TempPathFactory, make_manifest: MakeManifest, write_store: Callable[..., Path]
) -> dict[str, Path]:
    """One shard of three records, images embedded, two of them sharing one."""
    folder = tmp_path_factory.mktemp("flips")
    make = partial(make_manifest, num_samples=3, shard_size=3, inputs="embed")
    return {name: write_store(folder / name, make(backend=name)) for name in ("zarr", "webdataset")}


@contextmanager
def flipped(path: Path, at: int) -> Iterator[None]:
    """The byte at a place has one bit changed for the length of a block."""
    descriptor = os.open(path, os.O_RDWR)
    byte = os.pread(descriptor, 1, at)
    try:
        os.pwrite(descriptor, bytes([byte[0] ^ (1 << at % 8)]), at)
        yield
    finally:
        os.pwrite(descriptor, byte, at)
        os.close(descriptor)


def read_everything(store: Path) -> list[Record]:
    reader = StoreReader(store)
    assert len(reader.keys) == len(reader.ids)
    return [reader[place] for place in range(len(reader))]


@pytest.mark.parametrize("backend", ["zarr", "webdataset"])
def test_a_flip_anywhere_is_found_by_reading(stores: dict[str, Path], backend: str) -> None:
    store = stores[backend]
    assert len(read_everything(store)) == 3
    tried = 0
    # these lead only other software to the shards: verification compares them
    not_read = {store / name for name in get_backend(backend).store_files}
    for path in sorted(path for path in store.rglob("*") if path.is_file()):
        size = path.stat().st_size
        if path in not_read:
            for at in range(size):
                with flipped(path, at):
                    assert [str(path) in problem.message for problem in verify_store(store).problems] == [True]
            continue
        # chunks of small arrays end in many unused zeros: more steps where there is much, one at least
        for at in {size - 1, *range(tried % STRIDE, size, STRIDE)}:
            with flipped(path, at), pytest.raises(StoreError, match=str(store)):
                read_everything(store)
            tried += 1
    assert tried > 60 and len(read_everything(store)) == 3


@pytest.mark.parametrize("backend", ["zarr", "webdataset"])
def test_every_byte_of_the_sealed_files_counts(stores: dict[str, Path], backend: str) -> None:
    for name in ("manifest.json", "commits/00000000.json"):
        data = (stores[backend] / name).read_bytes()
        for at in range(len(data)):
            with pytest.raises(CorruptStoreError, match=r"x\.json: damaged"):
                unseal_bytes(data[:at] + bytes([data[at] ^ (1 << at % 8)]) + data[at + 1 :], "x.json")
            with pytest.raises(CorruptStoreError, match=r"x\.json: damaged"):
                unseal_bytes(data[:at], "x.json")


def test_every_byte_of_a_tar_index_counts(stores: dict[str, Path]) -> None:
    data = (stores["webdataset"] / "shards/00000000/00000000.idx").read_bytes()
    for at in range(len(data)):
        for damaged in (data[:at] + bytes([data[at] ^ (1 << at % 8)]) + data[at + 1 :], data[:at]):
            with pytest.raises(CorruptStoreError, match=r"x\.idx: .*restore the shard"):
                parse_index(damaged, "x.idx")


def test_every_byte_of_tar_and_npy_headers_counts(stores: dict[str, Path]) -> None:
    """All that is not data: headers and padding of every member, the opening and the closing."""
    store = stores["webdataset"]
    reader = StoreReader(store)
    reader[0]
    index = reader._shards.get(0, reader._open_shard).source.index  # type: ignore[attr-defined]
    tar = store / "shards/00000000/00000000.tar"
    data = {at for offset, size, _ in index.places.reshape(-1).tolist() for at in range(offset, offset + size)}
    framing = [at for at in range(index.head_bytes, index.tail_start) if at not in data]
    assert len(framing) > 20_000
    source = reader._shards.get(0, reader._open_shard).source
    for record, (start, image, end) in enumerate(index.parts.tolist()):
        content = source._pread(start, end)  # type: ignore[attr-defined]
        for at in (at for at in framing if start <= at < end):
            part, first, last = (0, start, image) if at < image else (1, image, end)
            content[at - start] ^= 1 << at % 8
            with pytest.raises(CorruptStoreError, match=rf"record {record}, headers: crc32c is"):
                source._verify(record, part, content[first - start : last - start], first)  # type: ignore[attr-defined]
            content[at - start] ^= 1 << at % 8
        at = framing[len(framing) // 4 * (record + 1)]
        [record] = [n for n, (begin, _, stop) in enumerate(index.parts.tolist()) if begin <= at < stop]
        with flipped(tar, at), pytest.raises(CorruptStoreError, match=rf"record {record}, headers: crc32c is"):
            reader[record]
    for at in (*range(0, index.head_bytes, 7), *range(index.tail_start, index.tar_bytes, 7)):
        with flipped(tar, at), pytest.raises(CorruptStoreError, match=r"tar: shard 0: byte \d+: crc32c is"):
            reader._shards.get(0, reader._open_shard).source.check_descriptions()


def test_every_byte_of_a_zarr_description_counts(stores: dict[str, Path], make_manifest: MakeManifest) -> None:
    store, folder = stores["zarr"], "shards/00000000"
    reader = StoreReader(store)
    commit = load_commit(store, 0, reader.manifest.manifest_hash())
    for path in sorted((store / folder).rglob("zarr.json"))[::6]:
        for at in range(0, path.stat().st_size, 13):
            with flipped(path, at), pytest.raises(CorruptStoreError, match=r"zarr.json: sha256 is \w+, committed"):
                ZarrSource(LocalFiles(store), folder, reader._codec.columns, commit).check_descriptions()
