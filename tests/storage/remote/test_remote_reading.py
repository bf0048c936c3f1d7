"""Reading over S3 and HTTP gives the bytes that lie in a folder, with few requests and in bounded space."""

import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from alignkd.storage import Manifest, Record, StoreError, StoreReader
from alignkd.storage.files.location import parse_location
from alignkd.storage.read.root_hash import root_hash
from alignkd.storage.remote.files import RemoteFiles
from alignkd.storage.schema.sources import Addition, StoredSource

MakeManifest = Callable[..., Manifest]
WriteStore = Callable[..., Path]
OpenRemote = Callable[..., RemoteFiles]
AssertSame = Callable[[Record, Record], None]

# cache_bytes: everything fits, hardly anything fits, no cache
CACHES = [1 << 30, 40_000, 0]


def assert_equal(local: Path, files: RemoteFiles, assert_same: AssertSame) -> None:
    expected, found = StoreReader(local), StoreReader(files)
    assert len(found) == len(expected) and found.path == files.location
    for position in [3, 0, 2, 1]:
        assert_same(found[position], expected[position])
    assert found.keys[:] == expected.keys[:] and found.quarantined == expected.quarantined
    assert root_hash(found.files, found.manifest) == root_hash(expected.files, expected.manifest)
    assert found.attachment("tokenizer.model").read_bytes() == expected.attachment("tokenizer.model").read_bytes()


@pytest.mark.parametrize("cache_bytes", CACHES)
def test_s3_equals_local(
    stored: Any, open_remote: OpenRemote, assert_same: AssertSame, cache_bytes: int, tmp_path: Path
) -> None:
    assert_equal(stored.folder, open_remote(stored.url, cache_bytes=cache_bytes), assert_same)
    cached = sum(path.stat().st_size for path in (tmp_path / "cache").glob("blocks/*/*"))
    assert cached <= cache_bytes and bool(cached) == bool(cache_bytes)


@pytest.mark.parametrize("cache_bytes", CACHES)
def test_http_equals_local(
    stored: Any, serve_folder: Callable[..., str], open_remote: OpenRemote, assert_same: AssertSame, cache_bytes: int
) -> None:
    url = f"{serve_folder(stored.folder.parent)}/{stored.folder.name}/"
    assert_equal(stored.folder, open_remote(url, cache_bytes=cache_bytes), assert_same)


def test_what_is_cached_is_not_fetched_again(
    stored: Any, gateway: Any, open_remote: OpenRemote, assert_same: AssertSame
) -> None:
    """Also by another reader, and over another fetcher."""
    reader = StoreReader(open_remote(stored.url))
    records = [reader[position] for position in range(len(reader))]
    gateway.seen.clear()
    for position, record in enumerate(records):
        assert_same(reader[position], record)
    assert gateway.seen == []
    again = StoreReader(open_remote(stored.url))
    assert_same(again[2], records[2])
    assert [exchange.path for exchange in gateway.seen if "/shards/" in exchange.path] == []


def test_the_columns_of_a_record_are_fetched_together(stored: Any, gateway: Any, open_remote: OpenRemote) -> None:
    reader = StoreReader(open_remote(stored.url))
    shard_files = reader.commits[0].files
    gateway.pause = 0.02
    gateway.most_at_once, gateway.seen = 0, []
    reader[0]
    fetched = {exchange.path for exchange in gateway.seen}
    assert all(exchange.method == "GET" for exchange in gateway.seen)
    if len(shard_files) > 4:  # zarr: a file per column
        assert len(fetched) > 8 and gateway.most_at_once >= 6
    else:
        assert len(fetched) <= 3


def test_nothing_is_asked_twice_at_the_start(stored: Any, gateway: Any, open_remote: OpenRemote) -> None:
    """One listing, the manifest, each commit record; no request per file."""
    StoreReader(open_remote(stored.url))
    asked = sorted(exchange.path.partition("?")[0].rpartition("store/")[2] for exchange in gateway.seen)
    assert [path for path in asked if path.endswith(".json")] == [
        *(f"commits/{shard:08d}.json" for shard in range(2)),
        "manifest.json",
    ]
    assert len(asked) == 4


def test_forked_and_pickled_readers_go_on(stored: Any, open_remote: OpenRemote, assert_same: AssertSame) -> None:
    """As data-loading workers do, after the parent has used its connections and threads."""
    expected, reader = StoreReader(stored.folder), StoreReader(open_remote(stored.url))
    assert_same(reader[0], expected[0])
    copy = pickle.loads(pickle.dumps(reader))
    assert_same(copy[1], expected[1])
    children = []
    for child in range(2):
        pid = os.fork()
        if not pid:
            code = 1
            try:
                for position in range(child, len(expected), 2):
                    assert_same(reader[position], expected[position])
                code = 0
            finally:
                os._exit(code)
        children.append(pid)
    assert [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children] == [0, 0]
    assert_same(reader[2], expected[2])


def test_an_unfinished_store_reads_as_far_as_it_goes(
    tmp_path: Path,
    make_manifest: MakeManifest,
    write_store: WriteStore,
    serve_folder: Callable[..., str],
    open_remote: OpenRemote,
) -> None:
    local = write_store(tmp_path / "local", make_manifest(backend="webdataset"), shards=[0, 2])
    files = open_remote(serve_folder(local))
    with pytest.raises(StoreError, match=r"store http://127\S+: 2 of 3 shards committed"):
        StoreReader(files)
    assert len(StoreReader(files, allow_incomplete=True)) == len(StoreReader(local, allow_incomplete=True))


def test_the_cache_stays_bounded_while_reading(
    stores: Any, s3: None, open_remote: OpenRemote, settings: Any, assert_same: AssertSame
) -> None:
    stored, limit = stores("webdataset"), 3 * 4096
    reader, expected = StoreReader(open_remote(stored.url, cache_bytes=limit)), StoreReader(stored.folder)
    for step in range(20):
        position = step * 3 % len(reader)
        assert_same(reader[position], expected[position])
        used = sum(path.stat().st_size for path in settings.cache_folder.glob("blocks/*/*"))
        assert 0 < used <= limit


def test_no_store_no_bucket_no_ranges(
    bucket: Any, stored: Any, serve_folder: Callable[..., str], open_remote: OpenRemote
) -> None:
    one_line(f"{bucket.url}/manifest.json: there is no such object", lambda: StoreReader(open_remote(bucket.url)))
    one_line("there is no bucket no-such-bucket", lambda: StoreReader(open_remote("s3://no-such-bucket/x")))
    whole = StoreReader(open_remote(serve_folder(stored.folder, ranges=False)))
    one_line("the server ignores Range requests", lambda: [whole[i] for i in range(len(whole))])


def one_line(message: str, work: Callable[[], object]) -> None:
    with pytest.raises(StoreError) as raised:
        work()
    assert message in str(raised.value) and "\n" not in str(raised.value)


@pytest.mark.parametrize(
    "location, problem",
    [
        ("s3://KEYID:hidden@bucket/x", "has credentials in the URL"),
        ("https://user:hidden@host/x", "has credentials in the URL"),
        ("https://host/x?X-Amz-Signature=hidden", "has a query or a fragment"),
        ("https://host/x#hidden", "has a query or a fragment"),
        ("s3://bucket/a/../hidden", "has an empty or relative part"),
        ("s3:///x", "is not a bucket name"),
        ("s3://Bad_Bucket/x", "is not a bucket name"),
        ("https:///x", "has no host"),
        ("https://[hidden/x", "is not a URL"),
    ],
)
def test_locations_that_cannot_be_right(location: str, problem: str) -> None:
    with pytest.raises(StoreError, match=problem) as raised:
        parse_location(location)
    if "hidden" in location and ".." not in location:
        assert "hidden" not in str(raised.value)


@pytest.mark.parametrize(
    "name, value",
    [
        ("ALIGNKD_CACHE_BYTES", "much"),
        ("ALIGNKD_CACHE_BLOCK_BYTES", "1"),
        ("ALIGNKD_REMOTE_TIMEOUT", "0"),
        ("ALIGNKD_REMOTE_ATTEMPTS", "0"),
        ("ALIGNKD_REMOTE_DEADLINE", "soon"),
    ],
)
def test_variables_that_cannot_be_right(bucket: Any, monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(name, value)
    one_line(f"{name} is '{value}'", lambda: StoreReader(bucket.url))


@pytest.mark.parametrize(
    "name, value, found",
    [("ALIGNKD_REMOTE_ATTEMPTS", "2", "2 attempts in"), ("ALIGNKD_REMOTE_DEADLINE", "0.1", "1 attempts in")],
)
def test_variables_bound_what_is_repeated(
    stored: Any, gateway: Any, monkeypatch: pytest.MonkeyPatch, name: str, value: str, found: str
) -> None:
    """Before the second attempt at least half of 0.2 s is waited."""
    monkeypatch.setenv(name, value)
    gateway.break_with(503)
    one_line(found, lambda: StoreReader(stored.url))
    assert len(gateway.seen) == int(found[0])


def test_a_store_that_grew_is_read_from_a_bucket_and_a_web_server(
    make_bucket: Callable[[], Any],
    s3: None,
    make_manifest: MakeManifest,
    write_store: WriteStore,
    serve_folder: Callable[..., str],
    open_remote: OpenRemote,
    assert_same: AssertSame,
    tmp_path: Path,
) -> None:
    """Also by a reader that was opened before."""
    manifest, bucket = make_manifest(num_samples=5), make_bucket()
    sources = (StoredSource(name="first", num_samples=0), StoredSource(name="more", num_samples=6))
    more = Addition(added="2026-11-28T12:00:00Z", sources=sources, num_samples=6)
    url = f"{serve_folder(tmp_path)}/store/"
    for place in (tmp_path / "store", bucket.url):
        write_store(place, manifest)
    before = [StoreReader(open_remote(place)) for place in (url, bucket.url)]
    old_root = before[0].root_hash()
    for place in (tmp_path / "store", bucket.url):
        write_store(place, manifest.changed(additions=[more]))
    assert [len(reader) for reader in before] == [5, 5] and before[0].root_hash() == old_root
    expected = StoreReader(tmp_path / "store")
    for place in (url, bucket.url):
        found = StoreReader(open_remote(place))
        assert len(found) == 11 and found.root_hash() == expected.root_hash() != old_root
        for position in (0, 4, 5, 10):
            assert_same(found[position], expected[position])
        assert found.sources == ["first", "more"] and found.source_of.tolist() == [0] * 5 + [1] * 6
