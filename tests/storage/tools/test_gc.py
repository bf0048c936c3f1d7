"""Leftovers of the dead go, what a live writer holds and what is committed stays."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from alignkd.storage import StoreError, open_writer, verify_store
from alignkd.storage.tools.gc import Leftover, collect_garbage

TreeBytes = Callable[[Path], dict[str, bytes]]


def states(leftovers: list[Leftover]) -> dict[str, str]:
    return {left.path: left.state for left in leftovers}


def test_dead_leftovers_are_removed_and_nothing_else(small_store: Path, tree_bytes: TreeBytes) -> None:
    before = tree_bytes(small_store)
    shutil.copytree(small_store / "shards" / "00000001", small_store / "shards" / "00000001-deadbeef")
    shutil.copytree(small_store / "shards" / "00000001", small_store / ".tmp-00000001-4242-00000000")
    (small_store / ".tmp-manifest-1-00000000").write_bytes(b"12345")
    (small_store / ".tmp-link").symlink_to(small_store / "shards")
    with_leftovers = tree_bytes(small_store)
    dry = collect_garbage(small_store, dry_run=True)
    assert set(states(dry).values()) == {"found"} and tree_bytes(small_store) == with_leftovers
    assert {left.path for left in dry} == {
        "shards/00000001-deadbeef", ".tmp-00000001-4242-00000000", ".tmp-manifest-1-00000000"
    }  # fmt: skip
    assert {left.num_bytes for left in dry if left.kind == "folder"} == {
        sum(len(data) for name, data in before.items() if name.startswith("shards/00000001/"))
    }
    assert set(states(collect_garbage(small_store)).values()) == {"removed"}
    assert (small_store / ".tmp-link").is_symlink()
    (small_store / ".tmp-link").unlink()
    assert tree_bytes(small_store) == before and collect_garbage(small_store) == []


def test_a_live_writer_goes_on(tmp_path: Path, make_manifest: Any, make_record: Any) -> None:
    manifest = make_manifest()
    writer = open_writer(tmp_path, manifest)
    with writer.open_shard(0) as sink:
        for index in writer.planned_samples(0).tolist():
            sink.append(make_record(manifest, index))
            assert set(states(collect_garbage(tmp_path)).values()) == {"in use"}
        sink.commit()
    assert verify_store(tmp_path, deep=True).num_records == 4


def test_a_killed_writer_leaves_what_gc_takes(tmp_path: Path, small_store: Path) -> None:
    code = (
        "import os, sys, pathlib; from alignkd.storage.files.exclusive import make_temporary_folder;"
        "folder, lock = make_temporary_folder(pathlib.Path(sys.argv[1]), '00000000');"
        "(folder / 'data').write_bytes(bytes(100)); print('ready', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", code, str(small_store)]
    root = Path(__file__).parents[3]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=root) as process:
        assert process.stdout is not None and process.stdout.readline() == b"ready\n"
        assert set(states(collect_garbage(small_store)).values()) == {"in use"}
        process.kill()
        process.wait()
    [left] = collect_garbage(small_store)
    assert (left.state, left.kind, left.num_bytes) == ("removed", "temporary", 100)


def test_what_is_young_stays(small_store: Path) -> None:
    old, young = small_store / ".tmp-old", small_store / ".tmp-young"
    for path in (old, young):
        path.mkdir()
    os.utime(old, (time.time() - 7200,) * 2)
    assert states(collect_garbage(small_store, older_than=3600.0)) == {".tmp-old": "removed", ".tmp-young": "young"}
    assert young.exists() and not old.exists()


def test_with_a_damaged_commit_nothing_is_removed(small_store: Path) -> None:
    record = small_store / "commits" / "00000001.json"
    record.write_bytes(record.read_bytes()[:-9])
    (small_store / ".tmp-dead").mkdir()
    with pytest.raises(StoreError, match=r"00000001\.json: damaged"):
        collect_garbage(small_store)
    assert (small_store / ".tmp-dead").exists() and (small_store / "shards" / "00000001").exists()
