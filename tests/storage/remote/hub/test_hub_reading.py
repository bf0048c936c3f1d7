"""Reading a store from the hub gives what lies in a folder, of one commit, and says in one line what is wrong."""

import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hub_server import READER, HubServer
from huggingface_hub import snapshot_download

from alignkd.storage import CorruptStoreError, Manifest, Record, StoreError, StoreReader, verify_store
from alignkd.storage.errors import RemoteError
from alignkd.storage.files.local import LocalFile
from alignkd.storage.places import open_files
from alignkd.storage.read.listing import list_store
from alignkd.storage.read.root_hash import root_hash

REPO, URL = "org/name", "hf://datasets/org/name"
AssertSame = Callable[[Record, Record], None]
HubStores = Callable[[str], Path]
PutStore = Callable[..., str]


def one_line(message: str, work: Callable[[], object], kind: type[StoreError] = StoreError) -> None:
    with pytest.raises(kind) as raised:
        work()
    assert message in str(raised.value), raised.value
    assert "\n" not in str(raised.value) and "hf_" not in str(raised.value).replace("hf_hub", "")


@pytest.mark.parametrize("backend", ["zarr", "webdataset"])
@pytest.mark.parametrize("prefix, url", [("", URL), ("sub/", f"{URL}/sub@main"), ("sub/", f"{URL}@main/sub")])
def test_the_hub_equals_a_folder(
    hub_stores: HubStores, put_store: PutStore, assert_same: AssertSame, backend: str, prefix: str, url: str
) -> None:
    folder = hub_stores(backend)
    put_store(folder, prefix)
    expected, found = StoreReader(folder), StoreReader(url)
    for position in [3, 0, 2, 1]:
        assert_same(found[position], expected[position])
    assert found.keys[:] == expected.keys[:] and found.quarantined == expected.quarantined
    assert root_hash(found.files, found.manifest) == root_hash(expected.files, expected.manifest)
    assert found.attachment("tokenizer.model").read_bytes() == expected.attachment("tokenizer.model").read_bytes()
    assert list_store(url) == list_store(folder)
    report = verify_store(url, deep=True)
    assert report.ok and report.num_records == 4 and not report.notes


def test_large_files_come_from_the_other_host_in_blocks(
    hub: HubServer, hub_stores: HubStores, put_store: PutStore
) -> None:
    """What is cached is not fetched again, also after a new commit that leaves the shard as it is."""
    put_store(hub_stores("webdataset"))
    reader = StoreReader(URL)
    assert not hub.asked("GET", "/storage/")
    reader[0]
    ranges = hub.asked("GET", "/storage/")
    assert ranges and all("Range" in one.headers for one in ranges)
    put_store(hub_stores("webdataset"))
    hub.seen.clear()
    StoreReader(URL)[0]
    assert not hub.asked("GET", "/storage/")


def test_a_reader_never_sees_another_commit(
    hub: HubServer,
    put_store: PutStore,
    make_manifest: Callable[..., Manifest],
    write_store: Callable[..., Path],
    assert_same: AssertSame,
    tmp_path: Path,
) -> None:
    """Also a copy in another process; and what `ls` shows is of one commit."""
    old = write_store(tmp_path / "old", make_manifest(num_samples=5, shard_size=3))
    new = write_store(tmp_path / "new", make_manifest(num_samples=5, shard_size=3, seed=2, backend="webdataset"))
    commit = put_store(old)
    reader, files = StoreReader(URL), open_files(URL)
    files.read("manifest.json", 1 << 20)
    put_store(new)
    copy = pickle.loads(pickle.dumps(reader))
    for position, expected in enumerate(StoreReader(old)):
        assert_same(copy[position], expected)
        assert_same(reader[position], expected)
    assert list_store(files) == list_store(old) and list_store(URL) == list_store(new)
    assert verify_store(reader.files, deep=True).ok
    assert list_store(f"{URL}@{commit}") == list_store(old)
    asked = {one.path.split("/resolve/")[1].partition("/")[0] for one in hub.seen if "/resolve/" in one.path}
    assert "main" not in asked


def test_forked_readers_go_on(hub_stores: HubStores, put_store: PutStore, assert_same: AssertSame) -> None:
    put_store(hub_stores("webdataset"))
    expected, reader = StoreReader(hub_stores("webdataset")), StoreReader(URL)
    assert_same(reader[0], expected[0])
    if not (pid := os.fork()):
        code = 1
        try:
            assert_same(reader[2], expected[2])
            code = 0
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert_same(reader[3], expected[3])


def test_a_downloaded_store_is_read_from_the_hubs_cache_and_offline(
    hub: HubServer,
    hub_stores: HubStores,
    put_store: PutStore,
    offline: Callable[[bool], None],
    assert_same: AssertSame,
) -> None:
    folder = hub_stores("webdataset")
    put_store(folder)
    offline(True)
    one_line("HF_HUB_OFFLINE is set, and the hub's cache does not hold it", lambda: StoreReader(URL), RemoteError)
    offline(False)
    StoreReader(URL)
    offline(True)
    partly = StoreReader(URL)  # manifest and commit records are in the cache, no shard is
    one_line(f"`hf download {REPO} --repo-type dataset`", lambda: partly[0], RemoteError)
    offline(False)
    snapshot_download(REPO, repo_type="dataset")
    hub.seen.clear()
    offline(True)
    reader = StoreReader(URL)
    for position, expected in enumerate(StoreReader(folder)):
        assert_same(reader[position], expected)
    assert reader.attachment("tokenizer.model").exists() and verify_store(URL, deep=True).ok
    assert isinstance(reader.files.open(f"{reader.commits[0].path}/00000000.tar"), LocalFile) and hub.seen == []


def test_a_downloaded_folder_verifies(
    hub_stores: HubStores, put_store: PutStore, tmp_path: Path, tree_bytes: Callable[[Path], dict[str, bytes]]
) -> None:
    folder = hub_stores("zarr")
    put_store(folder)
    snapshot_download(REPO, repo_type="dataset", local_dir=tmp_path / "copy")
    report = verify_store(tmp_path / "copy", deep=True)
    assert report.ok and not report.notes
    shutil.rmtree(tmp_path / "copy" / ".cache")
    assert tree_bytes(tmp_path / "copy") == tree_bytes(folder)


def test_damage_in_the_hubs_cache_is_read_past(
    hub: HubServer, hub_stores: HubStores, put_store: PutStore, assert_same: AssertSame
) -> None:
    """And `verify` looks at the hub."""
    folder = hub_stores("webdataset")
    put_store(folder)
    cached = Path(snapshot_download(REPO, repo_type="dataset"))
    for tar in cached.glob("shards/*/*.tar"):
        data = bytearray(tar.read_bytes())
        data[len(data) // 2 :] = bytes(len(data) - len(data) // 2)
        tar.resolve().write_bytes(data)
    reader = StoreReader(URL)
    for position, expected in enumerate(StoreReader(folder)):
        assert_same(reader[position], expected)
    assert verify_store(URL, deep=True).ok


def test_damage_on_the_hub_is_found(hub: HubServer, hub_stores: HubStores, put_store: PutStore) -> None:
    put_store(hub_stores("webdataset"))
    tree = hub.repos[REPO].commits[hub.repos[REPO].branches["main"]]
    blob = tree["shards/00000000/00000000.tar"]
    hub.objects[blob.sha256] = blob.data[:2000] + bytes(100) + blob.data[2100:]
    report = verify_store(URL, deep=True)
    assert not report.ok and "shards/00000000" in report.problems[0].message


@pytest.mark.parametrize("kind", [500, 503, 429, "cut", "lost", "whole"])
def test_what_breaks_once_is_asked_again(
    hub: HubServer, hub_stores: HubStores, put_store: PutStore, assert_same: AssertSame, kind: Any
) -> None:
    folder = hub_stores("webdataset")
    put_store(folder)
    hub.break_with(kind, lambda asked: "/storage/" in asked.path, times=1)
    hub.break_with(kind, lambda asked: "/revision/" in asked.path, times=1)
    expected, reader = StoreReader(folder), StoreReader(URL)
    for position in range(4):
        assert_same(reader[position], expected[position])
    assert all(fault[2] == 0 for fault in hub.faults)


def test_what_stays_broken_is_one_line(
    hub: HubServer, hub_stores: HubStores, put_store: PutStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_store(hub_stores("webdataset"))
    reader = StoreReader(URL)
    hub.break_with("cut", lambda asked: "/storage/" in asked.path)
    one_line(f"{URL}/shards/00000000/00000000.idx: the connection broke, 3 attempts in", lambda: reader[0], RemoteError)
    hub.heal()
    hub.rate_limit_seconds = 400  # longer than ALIGNKD_REMOTE_DEADLINE: not waited for
    hub.break_with(429, lambda asked: "/storage/" in asked.path)
    one_line("its rate limit is reached, 1 attempts in", lambda: reader[0], RemoteError)
    hub.heal()
    nowhere = "http://127.0.0.1:9"
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", nowhere)
    monkeypatch.setattr(
        "huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", nowhere + "/{repo_id}/resolve/{revision}/{filename}"
    )
    one_line("no connection to the hub, 3 attempts in", lambda: reader[0], RemoteError)
    one_line("no connection to the hub, 3 attempts in", lambda: StoreReader("hf://datasets/a/b"), RemoteError)
    assert len(StoreReader(URL)) == 4  # what the cache has is enough to open it


def test_a_data_set_of_several_stores_names_them(hub_stores: HubStores, put_store: PutStore) -> None:
    put_store(hub_stores("webdataset"), "a/b/")
    one_line(f"there is no such file; this data set has stores in {URL}@main/a/b", lambda: StoreReader(f"{URL}@main"))
    one_line(f"this data set has stores in {URL}/a/b", lambda: StoreReader(f"{URL}/a"))


def test_a_mixture_of_files_is_found(hub: HubServer, hub_stores: HubStores, put_store: PutStore) -> None:
    """A file that the commit record names is not in the data set."""
    put_store(hub_stores("webdataset"))
    del hub.repos[REPO].commits[hub.repos[REPO].branches["main"]]["shards/00000000/00000000.tar"]
    reader = StoreReader(URL)
    one_line("there is no such", lambda: reader[0], CorruptStoreError)
    assert not verify_store(URL).ok


def test_who_may_not_read_is_told_why(
    hub: HubServer,
    hub_stores: HubStores,
    put_store: PutStore,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    put_store(hub_stores("webdataset"), private=True)
    one_line("no such data set, or the token may not read it", lambda: StoreReader("hf://datasets/org/other"))
    one_line("the data set has no revision 'v9'; choose a branch", lambda: StoreReader(f"{URL}@v9"))
    one_line("manifest.json: there is no such object; is this the URL of a store?", lambda: StoreReader(f"{URL}/no"))
    assert "No files matched" not in caplog.text
    monkeypatch.setenv("HF_TOKEN", "hf_expired")
    one_line("the hub refuses the token; `hf auth login`", lambda: StoreReader(URL), RemoteError)
    monkeypatch.delenv("HF_TOKEN")
    one_line("no such data set, or it is private; check the name, or `hf auth login`", lambda: StoreReader(URL))
    monkeypatch.setenv("HF_TOKEN", READER)
    hub.repos[REPO].gated = True
    one_line("the data set is gated; ask for access on http://127", lambda: StoreReader(URL), RemoteError)
    hub.repos[REPO].gated = False
    assert len(StoreReader(URL)) == 4
