"""A disk that fills up: one clean line, no half shard, and the run goes on when there is room."""

import os
import resource
import subprocess
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from alignkd.storage import Manifest, StoreError, StoreReader
from alignkd.storage.files.exclusive import TEMPORARY_PREFIX

MakeManifest = Callable[..., Manifest]
WriteStore = Callable[..., Path]
TreeBytes = Callable[[Path], dict[str, bytes]]


@pytest.fixture(scope="module", params=["zarr", "webdataset"])
def make_manifest(request: pytest.FixtureRequest, make_manifest: MakeManifest) -> MakeManifest:
    return partial(make_manifest, backend=request.param)


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own in memory."""
    folder = tmp_path / "small"
    folder.mkdir()
    if os.geteuid() or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", folder]).returncode:
        pytest.skip("mounting a tmpfs needs root; the file size limit below covers part of it")
    yield folder
    subprocess.run(["umount", folder], check=True)


def resize(folder: Path, kilobytes: int) -> None:
    subprocess.run(["mount", "-o", f"remount,size={kilobytes}k", folder], check=True)


def used_kilobytes(folder: Path) -> int:
    stats = os.statvfs(folder)
    return (stats.f_blocks - stats.f_bfree) * stats.f_frsize // 1024


def test_a_full_disk_commits_nothing_half(
    mounted: Path, tmp_path: Path, make_manifest: MakeManifest, write_store: WriteStore, tree_bytes: TreeBytes
) -> None:
    """Room for one shard and a bit more, up to all but the last commit record, in steps of one block."""
    manifest = make_manifest(num_samples=5, shard_size=3)
    store = mounted / "store"
    write_store(store, manifest, shards=[0])
    first_shard = tree_bytes(store)
    floor = used_kilobytes(mounted)
    write_store(store, manifest)
    both_shards, ceiling = tree_bytes(store), used_kilobytes(mounted)
    messages = set()
    for kilobytes in [*range(floor + 4, ceiling, 40), *range(ceiling - 16, ceiling, 4)]:
        remove_second_shard(store)
        resize(mounted, kilobytes)
        with pytest.raises(StoreError, match=r"No space left on device .* free some space and run again") as caught:
            write_store(store, manifest)
        messages.add(str(caught.value).split(": ")[0])
        assert tree_bytes(store) == first_shard
        assert list(store.glob(f"{TEMPORARY_PREFIX}*")) == []
        resize(mounted, 4096)
    assert messages == {f"shard 1 of store {store}"}
    assert tree_bytes(write_store(store, manifest)) == both_shards


def remove_second_shard(store: Path) -> None:
    (store / "commits" / "00000001.json").unlink(missing_ok=True)
    subprocess.run(["rm", "-rf", store / "shards" / "00000001"], check=True)


def test_a_refused_write_commits_nothing_half(
    tmp_path: Path, make_manifest: MakeManifest, write_store: WriteStore, tree_bytes: TreeBytes
) -> None:
    """Needs no privilege: files may not grow beyond a limit that one array of the second shard exceeds."""
    manifest = make_manifest(num_samples=5, shard_size=3)
    store = write_store(tmp_path / "store", manifest, shards=[0])
    before = tree_bytes(store)
    child = os.fork()
    if not child:
        resource.setrlimit(resource.RLIMIT_FSIZE, (8000, 8000))
        try:
            write_store(store, manifest)
        except StoreError as error:
            os._exit(0 if "File too large" in str(error) and "free some space" in str(error) else 2)
        except BaseException:
            os._exit(3)
        os._exit(4)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert tree_bytes(store) == before
    assert len(StoreReader(write_store(store, manifest))) == 5


def test_a_folder_that_may_not_be_written_is_one_line(
    tmp_path: Path, make_manifest: MakeManifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    from alignkd.storage import open_writer

    writer = open_writer(tmp_path / "store", make_manifest())
    (tmp_path / "store").rename(tmp_path / "moved")
    with pytest.raises(StoreError, match=r"shard 0 of store .*: No such file or directory .* check the path"):
        writer.open_shard(0)
