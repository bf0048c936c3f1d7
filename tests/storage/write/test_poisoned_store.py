"""A stranger's store: every checksum right, every number chosen to do harm. Refused in one line, in bounded memory."""

import hashlib
import json
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import alignkd.storage.write.shard
from alignkd.storage import Manifest, Record, StoreError, StoreReader, list_shards, verify_store
from alignkd.storage.layouts.rows import Rows
from alignkd.storage.layouts.tar.index import TarIndex, parse_index
from alignkd.storage.read.shard import READS_BEFORE_HOLDING
from alignkd.storage.schema.columns.shard import OFFSETS, RECORDS
from alignkd.storage.schema.sealed_json import seal, unseal

MakeManifest = Callable[..., Manifest]
WriteStore = Callable[..., Path]
BACKENDS = ("zarr", "webdataset")
COMMIT = "commits/00000000.json"
LIMIT = 3 << 30


@contextmanager
def bounded_memory() -> Iterator[None]:
    """Address space for the threads' stacks and heaps, and little more; a number believed becomes a MemoryError."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + LIMIT, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def assert_refused(store: Path) -> None:
    with bounded_memory(), pytest.raises(StoreError) as caught:
        reader = StoreReader(store)
        for place in range(len(reader)):
            reader[place]
    assert len(str(caught.value).splitlines()) == 1 and len(str(caught.value)) < 1000
    with bounded_memory():
        report = verify_store(store, deep=True)
    assert not report.ok and all(len(problem.message.splitlines()) == 1 for problem in report.problems)


def in_array(name: str, **fields: Any) -> Callable[[dict[str, Any]], None]:
    return lambda commit: commit["arrays"][name].update(fields)


COMMITS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "records": lambda c: c.update(num_records=2**60),
    "records below zero": lambda c: c.update(num_records=-3, quarantined=c["quarantined"] * 6),
    "records as text": lambda c: c.update(num_records="3"),
    "records as truth": lambda c: c.update(num_records=True),
    "folder outside": lambda c: c.update(folder="../../etc"),
    "folder as list": lambda c: c.update(folder=[]),
    "file outside": lambda c: c["files"][0].update(path="../../../../etc/passwd"),
    "absolute file": lambda c: c["files"][0].update(path="/etc/passwd"),
    "large file": lambda c: c["files"][0].update(bytes=2**70),
    "no file": lambda c: c.update(files=[]),
    "files as text": lambda c: c.update(files="x" * 1000),
    "unknown field": lambda c: c.update(script="reboot"),
    "no totals": lambda c: c.pop("totals"),
    "totals": lambda c: c["totals"].update(bytes=1.5),
    "line breaks": lambda c: c["quarantined"].append({"index": 1, "id": "a\nb", "reason": 5}),
}
ZARR_COMMITS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "rows": in_array("attention", shape=[2**60, 2, 5]),
    "rows of the table": in_array("offsets", shape=[2**55, 11]),
    "chunk": in_array("attention", chunk=[2**60, 2, 5]),
    "no chunk": in_array("attention", chunk=[0, 2, 5]),
    "row shape": in_array("attention", shape=[9, 2**40, 2**40], chunk=[9, 2**40, 2**40]),
    "dimensions": in_array("input_ids", shape=[9] * 1000, chunk=[9] * 1000),
    "no dimension": in_array("input_ids", shape=[], chunk=[]),
    "no array": lambda c: c["arrays"].pop("labels"),
    "arrays as list": lambda c: c.update(arrays=[1]),
}


@pytest.mark.parametrize(
    ("backend", "change"),
    [
        pytest.param(backend, change, id=f"{backend}-{name}")
        for backend in BACKENDS
        for name, change in (COMMITS | (ZARR_COMMITS if backend == "zarr" else {})).items()
    ],
)
def test_absurd_commit_records_are_refused(
    tmp_path: Path,
    make_manifest: MakeManifest,
    write_store: WriteStore,
    backend: str,
    change: Callable[[dict[str, Any]], Any],
) -> None:
    store = write_store(tmp_path / "s", make_manifest(backend=backend, num_samples=3, shard_size=3), quarantine=(1,))
    document = unseal(store / COMMIT)
    change(document)
    (store / COMMIT).write_bytes(seal(document))
    assert_refused(store)


@pytest.mark.parametrize("content", [b"[" * 100_000, b"[1]", b'{"crc32c": 1}', b"\xff\xfe", bytes(17 << 20)])
def test_commit_records_that_are_no_such_files_are_refused(
    tmp_path: Path, make_manifest: MakeManifest, write_store: WriteStore, content: bytes
) -> None:
    store = write_store(tmp_path / "s", make_manifest(num_samples=3, shard_size=3))
    (store / COMMIT).write_bytes(content)
    assert_refused(store)
    with pytest.raises(StoreError, match=r"00000000\.json: "):
        list_shards(store)


def far_offsets(rows: Rows) -> None:
    rows[OFFSETS] = rows[OFFSETS] + np.int64(2**45)


def falling_offsets(rows: Rows) -> None:
    rows[OFFSETS] = -rows[OFFSETS]


def number(field: int, value: int) -> Callable[[Rows], None]:
    def change(rows: Rows) -> None:
        rows[RECORDS] = rows[RECORDS].copy()
        rows[RECORDS][0, field] = value

    return change


TABLES = {
    "offsets": far_offsets,
    "falling": falling_offsets,
    "index": number(0, -5),
    "image row": number(1, -(2**40)),
    "width": number(2, 2**40),
    "narrow": number(2, -9),
    "image later": number(3, 2**40),
    "image before": number(3, -7),
}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("pairs", ["tqv", "tqt"])
@pytest.mark.parametrize("change", TABLES.values(), ids=TABLES)
def test_absurd_tables_are_refused(
    tmp_path: Path,
    make_manifest: MakeManifest,
    write_store: WriteStore,
    monkeypatch: pytest.MonkeyPatch,
    backend: str,
    pairs: str,
    change: Callable[[Rows], None],
) -> None:
    """Written by a program that checks nothing, with every checksum right."""
    tables = alignkd.storage.write.shard.ShardWriter._tables

    def changed(self: alignkd.storage.write.shard.ShardWriter, record: Record, rows: Rows) -> Rows:
        made = tables(self, record, rows)
        change(made)
        return made

    manifest = make_manifest(backend=backend, num_samples=3, shard_size=3)
    codecs = manifest.codecs.model_copy(update={"attention_pairs": pairs})
    with monkeypatch.context() as patch:
        patch.setattr(alignkd.storage.write.shard.ShardWriter, "_tables", changed)
        patch.setattr(alignkd.storage.write.shard, "read_back", lambda *_: None)
        if backend == "webdataset":  # names of members come from the tables too
            patch.setattr("alignkd.storage.layouts.tar.format.record_name", lambda index: f"{abs(index):09d}"[:12])
            patch.setattr(
                "alignkd.storage.layouts.tar.writer.TarWriter._json",
                lambda self, rows, numbers: b"{" + rows["text"].tobytes(),
            )
        store = write_store(tmp_path / "s", manifest.model_copy(update={"codecs": codecs}))
    if pairs == "tqv" and change in (TABLES["width"], TABLES["narrow"]):
        return  # the width is the manifest's there, the number only says whether there is attention
    assert_refused(store)


def places(field: str, value: int, member: int = 3) -> Callable[[TarIndex], TarIndex]:
    def change(index: TarIndex) -> TarIndex:
        changed = index.places.copy()
        changed[field][0, member] = value
        return replace(index, places=changed)

    return change


def parts(values: list[int]) -> Callable[[TarIndex], TarIndex]:
    def change(index: TarIndex) -> TarIndex:
        changed = index.parts.copy()
        changed[0] = values
        return replace(index, parts=changed)

    return change


INDICES = {
    "offset far": places("offset", 2**60),
    "offset before": places("offset", 512),
    "size": places("size", 2**60),
    "size below zero": places("size", -1),
    "no member": places("offset", -1),
    "no json": places("offset", -1, 0),
    "part far": parts([0, 0, 2**60]),
    "part backwards": parts([4096, 512, 0]),
    "tar": lambda index: replace(index, tar_bytes=2**60),
    "opening": lambda index: replace(index, head_bytes=0),
    "closing": lambda index: replace(index, tail_start=2**60),
    "ids": lambda index: replace(index, ids=np.zeros(5, np.uint8)),
    "fewer records": lambda index: replace(
        index,
        records=index.records[:1],
        keys=index.keys[:1],
        places=index.places[:1],
        offsets=index.offsets[:2],
        parts=index.parts[:1],
        part_checksums=index.part_checksums[:1],
    ),
    "fewer members": lambda index: replace(index, places=index.places[:, :4]),
    "other member": lambda index: replace(index, places=index.places[:, ::-1]),
}


@pytest.mark.parametrize("change", INDICES.values(), ids=INDICES)
def test_absurd_tar_indices_are_refused(
    tmp_path: Path,
    make_manifest: MakeManifest,
    write_store: WriteStore,
    change: Callable[[TarIndex], TarIndex],
) -> None:
    store = write_store(tmp_path / "s", make_manifest(backend="webdataset", num_samples=3, shard_size=3))
    path = store / "shards/00000000/00000000.idx"
    path.write_bytes(change(parse_index(path.read_bytes(), "idx")).to_bytes())
    document = unseal(store / COMMIT)
    document["files"][1] |= {
        "bytes": path.stat().st_size,
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
    }
    (store / COMMIT).write_bytes(seal(document))
    assert_refused(store)


@pytest.mark.parametrize("at", range(12, 80, 4))
@pytest.mark.parametrize("value", [2**31, 2**32 - 1])
def test_absurd_counts_in_a_tar_index_are_refused(
    tmp_path: Path, make_manifest: MakeManifest, write_store: WriteStore, at: int, value: int
) -> None:
    from alignkd.storage.files.checksum import crc32c

    store = write_store(tmp_path / "s", make_manifest(backend="webdataset", num_samples=1, shard_size=1))
    data = bytearray((store / "shards/00000000/00000000.idx").read_bytes())
    data[at : at + 4] = value.to_bytes(4, "little")
    data[-4:] = crc32c(bytes(data[:-4])).to_bytes(4, "little")
    try:
        index = parse_index(bytes(data), "idx")
    except StoreError as error:
        assert str(error).startswith("idx: ")
    else:  # sizes of the tar, which are compared with the tar; and its checksums
        assert at >= 40 and index.places.shape[0] == 1


@pytest.mark.parametrize(
    "content", ["[]", "{}", '{"attributes": 5}', '{"attributes": {"crc32c": {"text": 7}}}', "{", "no"]
)
def test_absurd_descriptions_are_refused(
    tmp_path: Path, make_manifest: MakeManifest, write_store: WriteStore, content: str
) -> None:
    store = write_store(tmp_path / "s", make_manifest(num_samples=1, shard_size=1))
    path = store / "shards/00000000/zarr.json"
    if content == "{}":  # the checksums of one array only, and wrong ones
        document = json.loads(path.read_text())
        content = json.dumps({**document, "attributes": {"crc32c": {"offsets": "00" * 8}}})
    if content == "no":  # no checksums at all
        document = json.loads(path.read_text())
        content = json.dumps({**document, "attributes": {}})
    path.write_text(content)
    commit = unseal(store / COMMIT)
    for entry in commit["files"]:
        if entry["path"] == "zarr.json":
            entry |= {"bytes": len(content), "sha256": hashlib.sha256(content.encode()).hexdigest()}
    (store / COMMIT).write_bytes(seal(commit))
    assert_refused(store)


def test_a_column_of_fewer_rows_than_its_group_is_refused_also_from_memory(
    tmp_path: Path, make_manifest: MakeManifest, write_store: WriteStore
) -> None:
    """Small columns of a busy shard are in memory; rows that are not there must not become a shorter array."""
    count = 2 * READS_BEFORE_HOLDING
    store = write_store(tmp_path / "s", make_manifest(num_samples=count, shard_size=count))
    document = unseal(store / COMMIT)
    document["arrays"]["labels"]["shape"][0] -= 1
    (store / COMMIT).write_bytes(seal(document))
    reader = StoreReader(store)
    for _ in range(2):
        assert [len(reader[place].labels) for place in range(count - 1)] == reader.num_tokens[:-1].tolist()
        assert all(shard.held_bytes for shard in reader._shards._open.values())
        with pytest.raises(StoreError, match=r"array labels, chunk index: has \d+ rows, \d+:\d+ asked for"):
            reader[count - 1]
