"""Removes leftovers of dead writers from a store; never what is committed or what a live writer holds."""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from alignkd.storage.files.exclusive import TEMPORARY_PREFIX, locked_if_free, remove
from alignkd.storage.files.leftovers import removable_droppings
from alignkd.storage.files.local import LocalFiles
from alignkd.storage.files.location import as_location, check_location
from alignkd.storage.schema.commit_record import SHARDS, WRITTEN, load_heads, manifest_and_shards

BUCKET_AGE_SECONDS = 24 * 3600.0


@dataclass(frozen=True, kw_only=True)
class Leftover:
    """A file or folder in a store that belongs to no commit.

    Attributes:
        kind: `temporary` file or folder of a writer, shard `folder` without a commit record, incomplete `upload`,
            `foreign` file or folder of a desktop, a file server or an editor (`alignkd.storage.files.leftovers`).
        path: relative to the store.
        age_seconds: time since the last write.
        state: `removed`, `found` (dry run), `in use` by a live writer, or too `young`.
    """

    kind: Literal["temporary", "folder", "upload", "foreign"]
    path: str
    num_bytes: int
    age_seconds: float
    state: Literal["removed", "found", "in use", "young"]


def collect_garbage(location: Path | str, *, older_than: float | None = None, dry_run: bool = False) -> list[Leftover]:
    """Remove leftovers of dead writers.

    In a folder, a lock shows whether the writer is alive. A bucket has no locks, so only leftovers older than a day are
    removed.

    Args:
        older_than: seconds; younger leftovers stay. Default: 0 for a folder, a day for a bucket.
        dry_run: find leftovers without removing them.

    Returns:
        Everything that belongs to no commit, removed or not.

    Raises:
        StoreError: not a store, or a commit record that cannot be read; nothing is removed then.
    """
    place = as_location(location)
    check_location(place)
    if isinstance(place, str):
        return _in_bucket(place, BUCKET_AGE_SECONDS if older_than is None else older_than, dry_run)
    return list(_local(place, older_than or 0.0, dry_run))


def _local(store: Path, older_than: float, dry_run: bool) -> Iterator[Leftover]:
    """Leftovers, then droppings.

    Folders are listed before commit records are read, so that shards committed in between count as committed.
    """
    folders = [path for path in _entries(store / SHARDS) if path.is_dir()]
    named = _named(store)
    yield from (_handle(store, path, "temporary", older_than, dry_run) for path in _temporary(store))
    for path in folders:
        if f"{SHARDS}/{path.name}" not in named and WRITTEN.fullmatch(path.name) and path.exists():
            yield _handle(store, path, "folder", older_than, dry_run)
    for name in removable_droppings(LocalFiles(store).droppings()):
        yield _handle(store, store / name, "foreign", older_than, dry_run)


def _handle(
    store: Path, path: Path, kind: Literal["temporary", "folder", "foreign"], older_than: float, dry_run: bool
) -> Leftover:
    num_bytes, age = _size_and_age(path)
    with locked_if_free(path) as lock:
        state: Literal["removed", "found", "in use", "young"] = "found"
        if lock is None:
            state = "in use"
        elif kind == "folder" and f"{SHARDS}/{path.name}" in _named(store, int(path.name.partition("-")[0])):
            state = "in use"  # committed since the listing; its writer has released the lock
        elif age < older_than:
            state = "young"
        elif not dry_run:
            remove(path)
            state = "removed"
    return Leftover(
        kind=kind, path=path.relative_to(store).as_posix(), num_bytes=num_bytes, age_seconds=age, state=state
    )


def _named(store: Path, shard: int | None = None) -> set[str]:
    """Folders that commit records name; with `shard`, only that of its record."""
    files = LocalFiles(store)
    manifest, committed = manifest_and_shards(files)
    shards = [number for number in committed if shard in (None, number)]
    return {head.path for head, _ in load_heads(files, shards, manifest.shard_hash)}


def _temporary(store: Path) -> list[Path]:
    return [path for path in _entries(store) if path.name.startswith(TEMPORARY_PREFIX)]


def _entries(folder: Path) -> list[Path]:
    """The entries of a folder by name, without links."""
    return sorted(path for path in folder.iterdir() if not path.is_symlink()) if folder.is_dir() else []


def _size_and_age(path: Path) -> tuple[int, float]:
    found = [path, *(path.rglob("*") if path.is_dir() else [])]
    stats = []
    for entry in found:
        try:
            stats.append((entry.lstat().st_mtime, entry.lstat().st_size if entry.is_file() else 0))
        except FileNotFoundError:  # its writer removed it
            continue
    newest = max((mtime for mtime, _ in stats), default=time.time())
    return sum(size for _, size in stats), max(0.0, time.time() - newest)


def _in_bucket(location: str, older_than: float, dry_run: bool) -> list[Leftover]:
    from alignkd.storage.remote.s3.leftovers import remote_leftovers, remove_remote_leftovers

    found = remote_leftovers(location)
    old = [left for left in found if left.age_seconds >= older_than]
    if not dry_run:
        remove_remote_leftovers(location, old)
    state: Literal["removed", "found"] = "found" if dry_run else "removed"
    return [
        Leftover(
            kind=left.kind,
            path=left.path,
            num_bytes=left.num_bytes,
            age_seconds=left.age_seconds,
            state=state if left in old else "young",
        )
        for left in found
    ]
