"""What desktops, file servers and editors leave in a store is no damage: noted, removed by gc, and nothing else is."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from alignkd.storage import StoreError, StoreReader, open_writer, verify_store
from alignkd.storage.files.leftovers import is_dropping
from alignkd.storage.schema.shard_files import FOREIGN
from alignkd.storage.tools.gc import collect_garbage

TreeBytes = Callable[[Path], dict[str, bytes]]
DROPPINGS = (
    ".DS_Store",
    "shards/._00000000",
    "shards/00000000/._zarr.json",
    "shards/00000001/Thumbs.db",
    "shards/00000001/.nfs000000000123abcd00000001",
    "commits/.00000000.json.swp",
    "commits/00000000.json~",
    "attachments/desktop.ini",
    ".status/.DS_Store",
    "shards/.Spotlight-V100/Store-V2/psid.db",
)
KEPT = ("lost+found/#12345", ".Trash-1000/files/manifest.json", "shards/.snapshots/1/note")


def drop(store: Path, *paths: str) -> None:
    for path in paths:
        (store / path).parent.mkdir(parents=True, exist_ok=True)
        (store / path).write_bytes(b"droppings")


def test_they_are_noted_and_gc_removes_them(small_store: Path, tree_bytes: TreeBytes) -> None:
    before = tree_bytes(small_store)
    drop(small_store, *DROPPINGS, *KEPT)
    for deep in (False, True):
        report = verify_store(small_store, deep=deep)
        (note,) = report.notes
        assert report.ok and f"and 12 more; `alignkd shards gc {small_store}` removes " in note
        assert note.endswith(f"removes {len(DROPPINGS)} of them")
    assert len(StoreReader(small_store)) == report.num_records
    found = collect_garbage(small_store, dry_run=True)
    assert {left.kind for left in found} == {"foreign"} and len(found) == len(DROPPINGS)
    assert {left.state for left in collect_garbage(small_store)} == {"removed"}
    after = tree_bytes(small_store)
    assert after.keys() - before.keys() == set(KEPT) and {name: after[name] for name in before} == before
    (note,) = verify_store(small_store, deep=True).notes
    assert "they do no harm" in note


@pytest.mark.parametrize("name", ["notes.txt", "zarr.json.orig", ".hidden", "DS_Store", "nfs0001"])
def test_an_unknown_file_stays_an_error_that_names_the_step(small_store: Path, name: str) -> None:
    drop(small_store, f"shards/00000000/{name}", "shards/copy-of-00000001/zarr.json")
    (problem,) = verify_store(small_store, deep=True).problems
    assert f"{name}: {FOREIGN}" in problem.message and "move it out of the store, or delete it" in problem.message
    assert collect_garbage(small_store) == []  # also a folder that no writer names so is somebody's own


@pytest.mark.parametrize(
    "name", ["manifest.json", "00000000.json", "00000000", "zarr.json", "c", "0", "00000000.tar", "tokenizer.model",
             ".tmp-00000000-12-34", ".status", "worker-0-1-host-1.json", "stem.safetensors"]
)  # fmt: skip
def test_no_file_of_a_store_is_taken_for_one(name: str) -> None:
    assert not is_dropping(name)


def test_a_folder_that_holds_only_droppings_is_empty(tmp_path: Path, make_manifest: Any, bucket: Any) -> None:
    drop(tmp_path, ".DS_Store", "._shards")
    open_writer(tmp_path, make_manifest())
    bucket.put(".DS_Store", b"x")
    open_writer(bucket.url, make_manifest())
    drop(tmp_path / "other", "notes.txt")
    with pytest.raises(StoreError, match=r"holds 'notes\.txt' but no manifest"):
        open_writer(tmp_path / "other", make_manifest())


def test_a_file_that_appears_while_a_shard_is_written_does_not_spoil_it(
    tmp_path: Path, make_manifest: Any, make_record: Any
) -> None:
    manifest = make_manifest()
    writer = open_writer(tmp_path, manifest)
    with writer.open_shard(0) as sink:
        for index in writer.planned_samples(0).tolist():
            sink.append(make_record(manifest, index))
        drop(sink.folder, "._zarr.json")
        sink.commit()
    assert all("not committed" in problem.message for problem in verify_store(tmp_path, deep=True).problems)


def test_in_a_bucket_they_are_noted_and_removed_too(bucket: Any, make_manifest: Any, make_record: Any) -> None:
    manifest = make_manifest()
    writer = open_writer(bucket.url, manifest)
    for shard in writer.pending_shards():
        with writer.open_shard(shard) as sink:
            for index in writer.planned_samples(shard).tolist():
                sink.append(make_record(manifest, index))
            sink.commit()
    before = bucket.objects()
    folder = next(name for name in before if name.startswith("shards/")).rpartition("/")[0]
    for path in (".DS_Store", f"{folder}/._zarr.json", "shards/Thumbs.db"):
        bucket.put(path, b"x")
    report = verify_store(bucket.url, deep=True)
    assert report.ok and "and 2 more" in report.notes[-1]
    assert {left.state for left in collect_garbage(bucket.url, older_than=0.0)} == {"removed"}
    assert bucket.objects() == before
