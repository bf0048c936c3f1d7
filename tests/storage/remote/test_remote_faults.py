"""Broken connections, servers and caches: right bytes or one clear line, never wrong values."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from alignkd.storage import CorruptStoreError, Record, StoreError, StoreReader
from alignkd.storage.remote.files import RemoteFiles
from alignkd.storage.remote.retry import RemoteError

OpenRemote = Callable[..., RemoteFiles]
AssertSame = Callable[[Record, Record], None]

ONCE = ["cut", "short", "flip", "lost", "slow", "silent", 500, 503, 429]
ALWAYS = ["cut", "short", "flip", "lost", 500, 503]


def in_shards(exchange: Any) -> bool:
    return "/shards/" in exchange.path


def small_files(exchange: Any) -> bool:
    return exchange.path.endswith(".json") and exchange.method == "GET"


@pytest.fixture(params=["s3", "http"])
def transport(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def place(
    transport: str,
    stores: Any,
    s3: None,
    s3_service: str,
    gateway_to: Any,
    serve_folder: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> tuple[Path, str, Any]:
    """A WebDataset store's folder, its URL through a gateway, and the gateway."""
    stored = stores("webdataset")
    gateway = gateway_to(s3_service if transport == "s3" else serve_folder(stored.folder))
    monkeypatch.setenv("AWS_ENDPOINT_URL", gateway.url)
    return stored.folder, stored.url if transport == "s3" else gateway.url, gateway


def read_all(files: RemoteFiles, expected: StoreReader, assert_same: AssertSame) -> None:
    reader = StoreReader(files)
    for position in range(len(expected)):
        assert_same(reader[position], expected[position])


@pytest.mark.parametrize("kind", ONCE)
def test_what_passes_is_survived(
    place: tuple[Path, str, Any], open_remote: OpenRemote, assert_same: AssertSame, kind: str | int
) -> None:
    folder, url, gateway = place
    gateway.break_with(kind, in_shards, times=1 if kind in ("silent", "flip") else 2)
    if kind != "flip":  # of a manifest nobody knows the right bytes
        gateway.break_with(kind, small_files, times=0 if kind == "silent" else 2)
    waits = {"timeout_seconds": 1, "attempts": 20} if kind == "silent" else {}
    read_all(open_remote(url, **waits), StoreReader(folder), assert_same)
    assert sum(in_shards(exchange) for exchange in gateway.seen) > 2


@pytest.mark.parametrize("kind", ALWAYS)
def test_what_does_not_pass_is_one_line(
    place: tuple[Path, str, Any], open_remote: OpenRemote, assert_same: AssertSame, kind: str | int
) -> None:
    folder, url, gateway = place
    reader, expected = StoreReader(open_remote(url, attempts=3)), StoreReader(folder)
    gateway.seen.clear()
    gateway.break_with(kind, in_shards)
    with pytest.raises(StoreError) as raised:
        for position in range(len(expected)):
            assert_same(reader[position], expected[position])
    line = str(raised.value)
    assert "\n" not in line and f"{reader.files.location}/shards/" in line
    if kind == "flip":
        assert isinstance(raised.value, CorruptStoreError)
    else:
        # a store that does not answer is not called damaged, and it is not asked without end
        assert isinstance(raised.value, RemoteError) and "3 attempts in" in line and len(gateway.seen) <= 6
    gateway.heal()
    assert_same(reader[0], expected[0])


def test_a_server_that_is_gone(place: tuple[Path, str, Any], open_remote: OpenRemote, transport: str) -> None:
    _, url, gateway = place
    gateway.break_with("lost")
    with pytest.raises(RemoteError, match=r"manifest.json: the connection \w+, 2 attempts in .* s; check the network"):
        StoreReader(open_remote(url, attempts=2))


@pytest.mark.parametrize("kind", ["flip", 503])
def test_zarr_survives_too(
    stores: Any, gateway: Any, open_remote: OpenRemote, assert_same: AssertSame, kind: str | int
) -> None:
    stored = stores("zarr")
    gateway.break_with(kind, lambda exchange: in_shards(exchange) and exchange.path.endswith("0"), times=3)
    read_all(open_remote(stored.url), StoreReader(stored.folder), assert_same)


def flip_all(path: Path) -> None:
    path.write_bytes(bytes(byte ^ 0x10 for byte in path.read_bytes()))


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


@pytest.mark.parametrize(
    "damage, backend",
    [(flip_all, "webdataset"), (cut, "webdataset"), (Path.unlink, "webdataset"), (flip_all, "zarr")],
)
def test_a_damaged_cache_is_fetched_again(
    stores: Any,
    s3: None,
    open_remote: OpenRemote,
    settings: Any,
    assert_same: AssertSame,
    damage: Callable[[Path], object],
    backend: str,
) -> None:
    stored = stores(backend)
    expected, reader = StoreReader(stored.folder), StoreReader(open_remote(stored.url))
    assert_same(reader[0], expected[0])
    blocks = list(settings.cache_folder.glob("blocks/*/*"))
    assert blocks
    for block in blocks:
        damage(block)
    assert_same(reader[0], expected[0])
    assert_same(StoreReader(open_remote(stored.url))[0], expected[0])


def test_without_a_working_cache_reading_goes_on_and_says_so(
    stores: Any, s3: None, open_remote: OpenRemote, tmp_path: Path, assert_same: AssertSame, caplog: Any
) -> None:
    (tmp_path / "file").write_text("in the way")
    stored = stores("webdataset")
    with caplog.at_level(logging.WARNING):
        files = open_remote(stored.url, cache_folder=tmp_path / "file" / "cache")
        read_all(files, StoreReader(stored.folder), assert_same)
    assert [record.message for record in caplog.records if record.name == "alignkd"] == [
        f"cache {tmp_path}/file/cache: Not a directory; "
        "reading continues without it (ALIGNKD_CACHE sets another folder)"
    ]


def flipped(data: bytes) -> bytes:
    """Every byte of the last quarter wrong: data in any layout."""
    start = len(data) * 3 // 4
    return data[:start] + bytes(byte ^ 1 for byte in data[start:])


@pytest.mark.parametrize(
    "change, message",
    [
        (flipped, "crc32c"),
        (lambda data: data[: len(data) // 2], "bytes, committed"),
        (lambda data: data + b"more", "bytes, committed"),
        (None, "there is no such object"),
    ],
)
def test_a_damaged_object_is_named(
    stores: Any,
    bucket: Any,
    open_remote: OpenRemote,
    assert_same: AssertSame,
    change: Callable[[bytes], bytes] | None,
    message: str,
) -> None:
    stored = stores("webdataset")
    for path, data in stored.bucket.objects().items():
        bucket.put(path, data)
    name = "shards/00000000/00000000.tar"
    if change is None:
        bucket.delete(name)
    else:
        bucket.put(name, change(bucket.objects()[name]))
    expected, reader = StoreReader(stored.folder), StoreReader(open_remote(bucket.url))
    with pytest.raises(CorruptStoreError) as raised:
        for position in range(len(expected)):
            assert_same(reader[position], expected[position])
    line = str(raised.value)
    assert f"{bucket.url}/{name}" in line and message in line and "\n" not in line


@pytest.mark.parametrize(
    "damage", [flipped, lambda data: data + b" " * (1 << 21), lambda data: b"<html>not found</html>"]
)
def test_a_damaged_manifest(
    stores: Any, bucket: Any, open_remote: OpenRemote, damage: Callable[[bytes], bytes]
) -> None:
    bucket.put("manifest.json", damage(stores("webdataset").bucket.objects()["manifest.json"]))
    with pytest.raises(CorruptStoreError, match=rf"^{bucket.url}/manifest.json: .*$"):
        StoreReader(open_remote(bucket.url))


def test_a_damaged_attachment_is_not_given_out(stores: Any, bucket: Any, open_remote: OpenRemote) -> None:
    for path, data in stores("webdataset").bucket.objects().items():
        bucket.put(path, flipped(data) if path.startswith("attachments/") else data)
    reader = StoreReader(open_remote(bucket.url))
    with pytest.raises(CorruptStoreError, match=r"attachments/tokenizer.model: sha256 is .*, expected"):
        reader.attachment("tokenizer.model")
