"""Verifying distant stores: what is found in a folder is found, past every cache, and each byte travels once."""

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from alignkd.storage import StoreReader, verify_store
from alignkd.storage.errors import RemoteError
from alignkd.storage.places import open_files
from alignkd.storage.read.shard_records import ShardFolder
from alignkd.storage.remote.files import RemoteFiles
from alignkd.storage.schema.shard_files import FOREIGN
from alignkd.storage.tools.verify.plausibility import check_plausibility

OpenRemote = Callable[..., RemoteFiles]


@dataclass
class Copy:
    """A store of its own for one test, in a folder and the same in a bucket or behind a web server."""

    folder: Path
    url: str
    put: Callable[[str, bytes], None]
    delete: Callable[[str], None]

    def names(self) -> list[str]:
        return sorted(str(path.relative_to(self.folder)) for path in self.folder.rglob("*") if path.is_file())


@pytest.fixture(params=["s3 zarr", "s3 webdataset", "http zarr", "http webdataset"])
def copy(
    request: pytest.FixtureRequest,
    stores: Any,
    bucket: Any,
    serve_folder: Callable[..., str],
    tmp_path: Path,
) -> Copy:
    transport, backend = request.param.split()
    served = Path(shutil.copytree(stores(backend).folder, tmp_path / "served"))
    if transport == "http":
        return Copy(
            stores(backend).folder,
            serve_folder(served),
            lambda path, data: (served / path).write_bytes(data) and None,
            lambda path: (served / path).unlink(),
        )
    copied = Copy(stores(backend).folder, bucket.url, bucket.put, bucket.delete)
    for name in copied.names():
        bucket.put(name, (copied.folder / name).read_bytes())
    return copied


def messages(url: str, deep: bool = True) -> list[str]:
    return [problem.message for problem in verify_store(url, deep=deep).problems]


@pytest.mark.parametrize("deep", [False, True])
def test_a_sound_store_verifies_as_its_folder_does(copy: Copy, deep: bool, tmp_path: Path) -> None:
    distant, local = verify_store(copy.url, deep=deep), verify_store(copy.folder, deep=deep)
    assert distant.problems == local.problems == []
    assert (distant.num_shards, distant.num_records, distant.num_bytes) == (2, 4, local.num_bytes)
    assert not list(tmp_path.glob("staging/*")), "what was fetched for verification must not stay"


def test_a_changed_object_of_each_kind_is_named_past_the_readers_cache(copy: Copy) -> None:
    reader = StoreReader(copy.url)
    assert len([reader[position] for position in range(len(reader))]) == 4
    kinds = {name.split("/")[0] + Path(name).suffix: name for name in copy.names()}
    # of zarr also the group that leads to the shards
    assert len(kinds) == (6 if "zarr.json.json" in kinds else 5)
    for name in kinds.values():
        sound = (copy.folder / name).read_bytes()
        middle = len(sound) // 2
        copy.put(name, sound[:middle] + bytes([sound[middle] ^ 1]) + sound[middle + 1 :])
        assert any(f"{copy.url}/{name}" in message for message in messages(copy.url)), name
        copy.put(name, sound)
    assert messages(copy.url) == []


def test_sizes_and_absence_are_found_without_reading(copy: Copy) -> None:
    shard_files = [name for name in copy.names() if name.startswith("shards/0")]
    for name in (shard_files[-1], "attachments/tokenizer.model"):
        sound = (copy.folder / name).read_bytes()
        if name in shard_files:
            copy.put(name, sound + b"x")
            [message] = messages(copy.url, deep=False)
            assert message == f"{copy.url}/{name}: holds {len(sound) + 1} bytes, committed {len(sound)}"
        copy.delete(name)
        for deep in (False, True):
            [message] = messages(copy.url, deep=deep)
            assert message.startswith(f"{copy.url}/{name}: there is no such object")
        copy.put(name, sound)


def test_what_belongs_to_no_shard_is_named_or_the_blindness_is(copy: Copy) -> None:
    foreign = f"{next(name for name in copy.names() if name.startswith('shards/0')).rsplit('/', 1)[0]}/foreign"
    copy.put(foreign, b"?")
    report = verify_store(copy.url, deep=True)
    if copy.url.startswith("s3:"):
        assert [problem.message for problem in report.problems] == [f"{copy.url}/{foreign}: {FOREIGN}"]
        assert report.notes == []
    else:
        assert report.ok and report.notes[0].startswith("the place cannot be listed")
    assert verify_store(copy.url).notes == ["of attachments only the presence was checked"]


def test_each_byte_travels_once_in_small_ranges(stored: Any, gateway: Any) -> None:
    assert verify_store(stored.url, deep=True).ok
    asked = [exchange.headers["Range"] for exchange in gateway.seen if "/shards/0" in exchange.path]
    lengths = [int(last) - int(first) + 1 for first, last in (text.removeprefix("bytes=").split("-") for text in asked)]
    assert max(lengths) <= 4096
    held = sum(path.stat().st_size for path in (stored.folder / "shards").glob("*/**/*") if path.is_file())
    assert sum(lengths) == held


def test_what_breaks_on_the_way_is_no_damage(stored: Any, gateway: Any) -> None:
    gateway.break_with("flip", lambda exchange: "/shards/" in exchange.path, times=1)
    assert verify_store(stored.url, deep=True).ok
    gateway.break_with("flip", lambda exchange: "/shards/" in exchange.path)
    assert not verify_store(stored.url, deep=True).ok


@pytest.mark.parametrize("kind", [503, 403])
@pytest.mark.parametrize("where", ["manifest.json", "commits/00000000", "attachments", "shards/"])
def test_a_server_that_refuses_says_nothing_about_the_store(
    stores: Any, gateway: Any, open_remote: OpenRemote, kind: int, where: str
) -> None:
    files = open_remote(stores("webdataset").url, attempts=2)
    gateway.break_with(kind, lambda exchange: where in exchange.path)
    with pytest.raises(RemoteError, match=str(kind)):
        verify_store(files, deep=True)
    if where == "shards/":
        with pytest.raises(RemoteError, match=str(kind)):
            list(ShardFolder(files).unreadable_records(0))
        with pytest.raises(RemoteError, match=str(kind)):
            check_plausibility(files)


def test_a_staging_folder_that_cannot_be_made_is_one_line(
    stored: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("ALIGNKD_STAGING", str(tmp_path / "file" / "staging"))
    with (
        pytest.raises(ValueError, match=r"^staging folder .*is a file, not a folder"),
        open_files(stored.url).past_caches(),
    ):
        pass
    assert verify_store(stored.url).ok
