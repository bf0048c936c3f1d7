"""Writing into a bucket: committed whole or not at all, whoever dies, whoever else writes, whatever gets lost."""

import hashlib
import os
import re
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import alignkd.storage.remote.s3.upload
from alignkd.storage import CorruptStoreError, Manifest, Record, StoreError, StoreReader, StoreWriter, open_writer
from alignkd.storage.read.root_hash import root_hash
from alignkd.storage.remote.s3.leftovers import remote_leftovers, remove_remote_leftovers
from alignkd.storage.remote.s3.store import S3Store
from alignkd.storage.remote.s3.upload import Upload, upload_all
from alignkd.storage.remote.settings import RemoteSettings
from alignkd.storage.write.bucket import BucketPlace

MakeManifest = Callable[..., Manifest]
MakeRecord = Callable[..., Record]
AssertSame = Callable[[Record, Record], None]
FOLDER = re.compile(r"shards/\d{8}-[0-9a-f]{8}/")


@pytest.fixture
def write_remote(make_record: MakeRecord, settings: RemoteSettings) -> Callable[..., StoreWriter]:
    """write_remote(url, manifest, shards=None) writes or completes a store in a bucket."""

    def write(url: str, manifest: Manifest, shards: list[int] | None = None) -> StoreWriter:
        writer = StoreWriter(BucketPlace(url, settings), manifest)
        for shard in writer.pending_shards() if shards is None else shards:
            with writer.open_shard(shard) as sink:
                for index in writer.planned_samples(shard).tolist():
                    sink.append(make_record(manifest, index))
                sink.commit()
        return writer

    return write


@pytest.fixture
def manifest(make_manifest: MakeManifest) -> Manifest:
    """Two shards of few files."""
    return make_manifest(backend="webdataset", num_samples=4, shard_size=2)


@pytest.fixture
def alone(tmp_path: Path, manifest: Manifest, write_store: Callable[..., Path]) -> StoreReader:
    """The same store, written into a folder by one writer whom nobody disturbed."""
    return StoreReader(write_store(tmp_path / "alone", manifest))


def assert_complete(bucket: Any, open_remote: Callable[..., Any], alone: StoreReader, assert_same: AssertSame) -> None:
    """The store holds what `alone` does, byte for byte, and nothing of anybody's is left behind."""
    found = StoreReader(open_remote(bucket.url))
    assert root_hash(found.files, found.manifest) == root_hash(alone.files, alone.manifest)
    for position in range(len(alone)):
        assert_same(found[position], alone[position])
    by_name = {FOLDER.sub(lambda m: m[0][:15] + "/", path): data for path, data in bucket.objects().items()}
    for path in Path(alone.path).rglob("*"):
        name = str(path.relative_to(alone.path))
        if path.is_file() and name.startswith("shards/"):
            assert by_name.pop(name) == path.read_bytes()
    assert [name for name in by_name if name.startswith("shards/")] == []


@pytest.mark.parametrize("backend", ["zarr", "webdataset"])
def test_a_bucket_holds_what_a_folder_would(
    bucket: Any,
    open_remote: Callable[..., Any],
    make_manifest: MakeManifest,
    make_record: MakeRecord,
    write_store: Callable[..., Path],
    tmp_path: Path,
    assert_same: AssertSame,
    backend: str,
) -> None:
    """By the public names, as a user would."""
    manifest = make_manifest(backend=backend, num_samples=3, shard_size=3)
    writer = open_writer(bucket.url, manifest)
    assert writer.pending_shards() == [0]
    with writer.open_shard(0) as sink:
        first, second, third = writer.planned_samples(0).tolist()
        sink.quarantine(second, f"sample-{second % 7}", "image is damaged")
        sink.append(make_record(manifest, first))
        sink.append(make_record(manifest, third))
        commit = sink.commit()
    assert FOLDER.fullmatch(f"{commit.path}/") and writer.pending_shards() == []
    alone = write_store(tmp_path / "alone", manifest, quarantine=(second,))
    assert_complete(bucket, open_remote, StoreReader(alone), assert_same)
    assert list((tmp_path / "staging").iterdir()) == []
    with pytest.raises(StoreError, match=rf"shard 0 of store {bucket.url} is committed already"):
        writer.open_shard(0)


def in_child(work: Callable[[], object]) -> int:
    child = os.fork()
    if not child:
        code = 1
        try:
            work()
            code = 0
        finally:
            os._exit(code)
    return child


@pytest.mark.parametrize("moment", [1, 3, 4, 5, 8])
def test_killed_while_uploading(
    bucket: Any,
    gateway: Any,
    open_remote: Callable[..., Any],
    settings: RemoteSettings,
    manifest: Manifest,
    write_remote: Callable[..., StoreWriter],
    alone: StoreReader,
    assert_same: AssertSame,
    moment: int,
) -> None:
    """kill -9 when the service gets the n-th object: manifest, its second try, files of a shard, commit record ..."""
    puts: list[str] = []

    def kill(exchange: Any) -> bool:
        if exchange.method == "PUT":
            puts.append(exchange.path)
            if len(puts) == moment:
                os.kill(child, signal.SIGKILL)
        return False

    gateway.break_with("cut", kill)
    child = in_child(lambda: write_remote(bucket.url, manifest))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    gateway.heal()
    if moment > 1:
        survivors = StoreReader(open_remote(bucket.url), allow_incomplete=True)
        for position in range(len(survivors)):
            assert survivors[position].index in range(manifest.num_samples)
    write_remote(bucket.url, manifest)
    dead = remote_leftovers(bucket.url, settings)
    assert all(left.kind == "folder" and left.age_seconds < 3600 for left in dead) and len(dead) <= 1
    remove_remote_leftovers(bucket.url, dead, settings)
    assert remote_leftovers(bucket.url, settings) == []
    assert_complete(bucket, open_remote, alone, assert_same)
    assert list(settings.staging_folder.iterdir()) == []


def test_of_two_writers_of_a_shard_one_commits(
    bucket: Any,
    open_remote: Callable[..., Any],
    make_record: MakeRecord,
    manifest: Manifest,
    settings: RemoteSettings,
    write_remote: Callable[..., StoreWriter],
    alone: StoreReader,
    assert_same: AssertSame,
) -> None:
    one, other = (StoreWriter(BucketPlace(bucket.url, settings), manifest) for _ in range(2))
    with one.open_shard(0) as first, other.open_shard(0) as second:
        for index in one.planned_samples(0).tolist():
            first.append(make_record(manifest, index))
            second.append(make_record(manifest, index))
        winner = first.commit()
        assert second.commit() == winner
    write_remote(bucket.url, manifest)
    assert_complete(bucket, open_remote, alone, assert_same)


def test_processes_share_a_plan(
    bucket: Any,
    open_remote: Callable[..., Any],
    manifest: Manifest,
    write_remote: Callable[..., StoreWriter],
    alone: StoreReader,
    assert_same: AssertSame,
) -> None:
    """Both try every shard; a shard that the other has committed meanwhile is no error of the store."""

    def work() -> None:
        for shard in range(manifest.num_shards):
            try:
                write_remote(bucket.url, manifest, [shard])
            except StoreError as error:
                assert "is committed already" in str(error)

    children = [in_child(work) for _ in range(2)]
    assert [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children] == [0, 0]
    assert_complete(bucket, open_remote, alone, assert_same)


@pytest.mark.parametrize("kind", ["lost", 503, 500])
def test_what_passes_is_survived(
    bucket: Any,
    gateway: Any,
    open_remote: Callable[..., Any],
    manifest: Manifest,
    write_remote: Callable[..., StoreWriter],
    alone: StoreReader,
    assert_same: AssertSame,
    kind: str | int,
) -> None:
    """Every object's first PUT fails; `lost` has written it, so that the second finds it there and is not confused."""
    seen: set[str] = set()

    def first_put(exchange: Any) -> bool:
        new = exchange.method == "PUT" and exchange.path not in seen
        seen.add(exchange.path if exchange.method == "PUT" else "")
        return new

    gateway.break_with(kind, first_put)
    write_remote(bucket.url, manifest)
    assert len(seen) > 6
    assert_complete(bucket, open_remote, alone, assert_same)


@pytest.mark.parametrize("kind", ["unconditional", "unsupported"])
def test_services_without_conditional_writes_are_refused(
    bucket: Any, gateway: Any, manifest: Manifest, write_remote: Callable[..., StoreWriter], kind: str
) -> None:
    """One overwrites silently, the other answers 501: both before a shard is written, new store or not."""
    line = (
        rf"store {bucket.url}: the service does not honour If-None-Match, .*; write the store to a folder and copy it"
    )
    gateway.break_with(kind)
    with pytest.raises(StoreError, match=line):
        open_writer(bucket.url, manifest)
    gateway.heal()
    write_remote(bucket.url, manifest, [0])
    before = bucket.objects()
    gateway.break_with(kind)
    with pytest.raises(StoreError, match=line):
        open_writer(bucket.url, manifest)
    assert bucket.objects() == before


def test_a_service_that_is_gone_is_one_line(
    bucket: Any,
    gateway: Any,
    settings: RemoteSettings,
    manifest: Manifest,
    make_record: MakeRecord,
    open_remote: Callable[..., Any],
) -> None:
    writer = StoreWriter(BucketPlace(bucket.url, settings), manifest)
    with writer.open_shard(0) as sink:
        for index in writer.planned_samples(0).tolist():
            sink.append(make_record(manifest, index))
        gateway.break_with("lost", lambda exchange: exchange.method == "PUT")
        with pytest.raises(StoreError, match=rf"^{bucket.url}/shards/00000000-\S+: the connection .*, 4 attempts .*$"):
            sink.commit()
    gateway.heal()
    assert len(StoreReader(open_remote(bucket.url), allow_incomplete=True)) == 0
    assert remote_leftovers(bucket.url, settings) == []


@pytest.fixture
def large(tmp_path: Path) -> Upload:
    """A file of three parts."""
    path, data = tmp_path / "large", os.urandom(12 << 20)
    path.write_bytes(data)
    return Upload(
        source=path, path="shards/00000000-0/x.tar", num_bytes=len(data), sha256=hashlib.sha256(data).hexdigest()
    )


@pytest.fixture
def parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """The smallest parts that S3 takes."""
    monkeypatch.setattr(alignkd.storage.remote.s3.upload, "PART_BYTES", 5 << 20)


@pytest.mark.parametrize("kind", [None, "lost", 503])
def test_large_files_go_in_parts(
    bucket: Any, gateway: Any, settings: RemoteSettings, large: Upload, parts: None, kind: str | int | None
) -> None:
    if kind is not None:
        gateway.break_with(kind, lambda exchange: "partNumber=2" in exchange.path, times=1)
        gateway.break_with(kind, lambda exchange: exchange.method == "POST" and "uploadId" in exchange.path, times=1)
    upload_all(S3Store(bucket.url, settings), [large])
    assert bucket.objects() == {large.path: large.source.read_bytes()}
    assert sum("partNumber=" in exchange.path for exchange in gateway.seen) == 3 + (kind is not None)


def test_a_failed_large_file_leaves_nothing(
    bucket: Any, gateway: Any, settings: RemoteSettings, large: Upload, parts: None
) -> None:
    store = S3Store(bucket.url, settings)
    gateway.break_with(503, lambda exchange: "partNumber=2" in exchange.path)
    with pytest.raises(StoreError, match=r"x.tar: the service answers 503"):
        upload_all(store, [large])
    assert bucket.objects() == {} and "Uploads" not in bucket.client.list_multipart_uploads(Bucket=bucket.name)


def test_a_dead_upload_is_a_leftover(
    bucket: Any, settings: RemoteSettings, manifest: Manifest, write_remote: Callable[..., StoreWriter]
) -> None:
    write_remote(bucket.url, manifest, [])
    key = "some/store/shards/00000001-abc/x.tar"
    bucket.client.create_multipart_upload(Bucket=bucket.name, Key=key)
    [left] = remote_leftovers(bucket.url, settings)
    assert (left.kind, left.path, left.num_bytes) == ("upload", "shards/00000001-abc/x.tar", 0)
    remove_remote_leftovers(bucket.url, [left, left], settings)
    assert remote_leftovers(bucket.url, settings) == []


def test_what_changed_on_disk_is_not_uploaded(bucket: Any, settings: RemoteSettings, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"other bytes")
    committed = hashlib.sha256(b"right bytes").hexdigest()
    with pytest.raises(CorruptStoreError, match=r"file: holds 11 bytes with sha256 .*, committed were 11 with .*"):
        upload_all(
            S3Store(bucket.url, settings),
            [Upload(source=tmp_path / "file", path="x", num_bytes=11, sha256=committed)],
        )
    assert bucket.objects() == {}


def test_a_bucket_that_is_something_else(
    bucket: Any, settings: RemoteSettings, make_manifest: MakeManifest, manifest: Manifest
) -> None:
    bucket.put("holiday.jpg", b"")
    with pytest.raises(StoreError, match=r"holds 'holiday.jpg' but no manifest.json, so it is not a store"):
        open_writer(bucket.url, manifest)
    bucket.delete("holiday.jpg")
    open_writer(bucket.url, manifest)
    with pytest.raises(StoreError, match=r"made with other settings: seed is 1 in the store, 2 asked for"):
        open_writer(bucket.url, manifest.model_copy(update={"seed": 2}))
    with pytest.raises(StoreError, match=r"https://host/x: can only be read"):
        open_writer("https://host/x", manifest)
    with pytest.raises(StoreError, match=r"there is no bucket no-such-bucket"):
        open_writer("s3://no-such-bucket/x", manifest)


def test_attachments(bucket: Any, make_manifest: MakeManifest, open_remote: Callable[..., Any], tmp_path: Path) -> None:
    content = b"pieces" * 100
    manifest = make_manifest(attachments={"a.model": hashlib.sha256(content).hexdigest()})
    with pytest.raises(StoreError, match=r"attachments/a.model: is missing, and the store needs it"):
        open_writer(bucket.url, manifest)
    with pytest.raises(StoreError, match=r"attachment a.model: sha256 is \w{12}, expected \w{12} by the manifest"):
        open_writer(bucket.url, manifest, {"a.model": b"other"})
    assert bucket.objects() == {}
    bucket.put("attachments/a.model", b"of another run")
    with pytest.raises(
        StoreError, match=r"attachments/a.model: is not the a.model of this run and belongs to no store"
    ):
        open_writer(bucket.url, manifest, {"a.model": content})
    bucket.delete("attachments/a.model")
    (tmp_path / "a").write_bytes(content)
    open_writer(bucket.url, manifest, {"a.model": tmp_path / "a"})
    open_writer(bucket.url, manifest)
    assert StoreReader(open_remote(bucket.url), allow_incomplete=True).attachment("a.model").read_bytes() == content
