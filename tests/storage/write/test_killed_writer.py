"""kill -9 of a writer at any moment: committed shards stay, the next run completes the store to the same bytes."""

import os
import signal
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from alignkd.storage import Manifest, StoreReader, open_writer, verify_store
from alignkd.storage.files.exclusive import TEMPORARY_PREFIX

MakeManifest = Callable[..., Manifest]
WriteStore = Callable[..., Path]
TreeBytes = Callable[[Path], dict[str, bytes]]

# every call by which a writer changes the disk
CALLS = ("write", "writev", "fsync", "mkdir", "rename", "link", "unlink", "rmdir")


@pytest.fixture(scope="module", params=["zarr", "webdataset"])
def make_manifest(request: pytest.FixtureRequest, make_manifest: MakeManifest) -> MakeManifest:
    return partial(make_manifest, backend=request.param)


@pytest.fixture(scope="module")
def manifest(make_manifest: MakeManifest) -> Manifest:
    return make_manifest(num_samples=5, shard_size=3)


@pytest.fixture(scope="module")
def unbroken(
    tmp_path_factory: pytest.TempPathFactory, manifest: Manifest, write_store: WriteStore, tree_bytes: TreeBytes
) -> dict[str, bytes]:
    """The bytes of a store that nobody interrupted."""
    return tree_bytes(write_store(tmp_path_factory.mktemp("unbroken") / "store", manifest))


class Disk:
    """Counts a process's calls to the disk and ends the process in the middle of one of them."""

    def __init__(self, die_at: int | None = None) -> None:
        self.die_at = die_at
        self.calls: list[str] = []
        self._lock = threading.Lock()  # fsync runs in threads

    def watch(self) -> None:
        for name in CALLS:
            setattr(os, name, self._counted(name, getattr(os, name)))

    def _counted(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            with self._lock:
                self.calls.append(name)
                if len(self.calls) - 1 == self.die_at:
                    if name == "write":  # a torn write
                        real(arguments[0], arguments[1][: len(arguments[1]) // 2])
                    if name == "writev":
                        real(arguments[0], arguments[1][: len(arguments[1]) // 2])
                    os.kill(os.getpid(), signal.SIGKILL)
            return real(*arguments, **options)

        return call


def in_child(work: Callable[[], object], disk: Disk) -> int:
    """Run in a forked process under the watched disk; returns how the process ended."""
    child = os.fork()
    if not child:
        try:
            disk.watch()
            work()
        except BaseException:
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.fixture(scope="module")
def calls(tmp_path_factory: pytest.TempPathFactory, manifest: Manifest, write_store: WriteStore) -> list[str]:
    """The calls to the disk of one unbroken run, in order."""
    log = tmp_path_factory.mktemp("calls") / "log"
    disk = Disk()

    def work() -> None:
        write_store(log.parent / "store", manifest)
        log.write_text(" ".join(disk.calls))

    assert in_child(work, disk) == 0
    return log.read_text().split()


def moments(calls: list[str]) -> list[int]:
    """The first calls of a store, from each rename to after the link of the commit, and at random elsewhere."""
    critical = set(range(1, 7))
    for at, name in enumerate(calls):
        if name == "rename":
            critical |= set(range(at, calls.index("link", at) + 4))
    random = np.random.default_rng(0).integers(0, len(calls), 10).tolist()
    return sorted(at for at in critical | set(random) if at < len(calls))


def test_killed_at_any_moment_the_next_run_completes_the_same_bytes(
    tmp_path: Path,
    manifest: Manifest,
    write_store: WriteStore,
    tree_bytes: TreeBytes,
    unbroken: dict[str, bytes],
    calls: list[str],
) -> None:
    assert calls.count("rename") == manifest.num_shards
    for at in moments(calls):
        store = tmp_path / str(at)
        assert in_child(partial(write_store, store, manifest), Disk(at)) == -signal.SIGKILL, calls[at]
        check_survivors(store)
        write_store(store, manifest)
        assert tree_bytes(store) == unbroken, (at, calls[at])


def check_survivors(store: Path) -> None:
    """What is committed is whole, in the very state in which the dead process left the disk."""
    if (store / "manifest.json").exists():
        StoreReader(store, allow_incomplete=True)
        wrong = [p.message for p in verify_store(store, deep=True).problems if "not committed" not in p.message]
        assert wrong == []


def test_killed_again_and_again_every_run_gets_further(
    tmp_path: Path,
    manifest: Manifest,
    write_store: WriteStore,
    tree_bytes: TreeBytes,
    unbroken: dict[str, bytes],
    calls: list[str],
) -> None:
    """One store, a writer that dies at random; leftovers of all its deaths are gone in the end."""
    rng = np.random.default_rng(1)
    store, deaths = tmp_path / "store", 0
    while in_child(partial(write_store, store, manifest), Disk(int(rng.integers(len(calls))))) != 0:
        deaths += 1
        check_survivors(store)
        assert deaths < 50
    open_writer(store, manifest)  # clears what a death after the last commit may have left
    assert deaths > 0 and tree_bytes(store) == unbroken
    assert list(store.glob(f"{TEMPORARY_PREFIX}*")) == []


def test_an_exception_leaves_no_trace(
    tmp_path: Path, manifest: Manifest, write_store: WriteStore, tree_bytes: TreeBytes
) -> None:
    store = write_store(tmp_path / "store", manifest, shards=[0])
    before = tree_bytes(store)

    def fail(index: int) -> Any:
        raise RuntimeError(f"the teacher failed at {index}")

    with pytest.raises(RuntimeError, match="the teacher failed"):
        write_store(store, manifest, record_of=fail)
    assert tree_bytes(store) == before
