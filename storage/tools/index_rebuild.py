"""Rebuilds the indexes of a webdataset store from its tars, and compares them with what was committed."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from alignkd.storage.errors import StoreError
from alignkd.storage.files.checksum import file_sha256
from alignkd.storage.files.exclusive import replace_durably
from alignkd.storage.files.local import LocalFiles
from alignkd.storage.files.location import as_location
from alignkd.storage.layouts.tar.rebuild import rebuild_index
from alignkd.storage.schema.commit_record import CommitRecord, load_commit, manifest_and_shards


@dataclass(frozen=True, kw_only=True)
class IndexState:
    """One shard's index.

    Attributes:
        state: `sound`: unchanged; `rebuilt`: it was missing or damaged, and the index of the tar has the committed
            sha256; `repairable`: the same, not written; `lost`: the tar has another index, or none.
        message: the problem, or empty.
    """

    shard: int
    state: Literal["sound", "rebuilt", "repairable", "lost"]
    message: str = ""


def rebuild_indexes(
    location: Path | str, *, write: bool, on_shard: Callable[[int], object] = lambda shard: None
) -> list[IndexState]:
    """Build the index of every committed shard from its tar, and replace the stored one if that is damaged.

    The checksums in a rebuilt index are computed from the present tar. The commit record has the sha256 of the whole
    index, which proves that they are the committed ones. An index that differs is never written.

    Raises:
        StoreError: not a webdataset store in a local folder, or a commit record that cannot be read.
    """
    place = as_location(location)
    if isinstance(place, str):
        raise StoreError(f"store {place}: indexes are rebuilt in a folder; copy the store to one first")
    files = LocalFiles(place)
    manifest, shards = manifest_and_shards(files)
    if manifest.backend != "webdataset":
        raise StoreError(f"store {place}: backend is {manifest.backend}, only webdataset stores have an index file")
    states = []
    for shard in shards:
        states.append(_rebuild(place, load_commit(files, shard, manifest.shard_hash), write))
        on_shard(shard)
    return states


def _rebuild(store: Path, commit: CommitRecord, write: bool) -> IndexState:
    shard, entries = commit.shard, {Path(entry.path).suffix: entry for entry in commit.files}
    if entries.keys() != {".tar", ".idx"}:
        return IndexState(shard=shard, state="lost", message=f"shard {shard}: its commit record names no tar and index")
    tar, idx = entries[".tar"], entries[".idx"]
    path = store / commit.path / idx.path
    try:
        content = rebuild_index(store / commit.path / tar.path)
    except StoreError as error:
        return IndexState(shard=shard, state="lost", message=str(error))
    if (found := hashlib.sha256(content).hexdigest()) != idx.sha256:
        return IndexState(
            shard=shard,
            state="lost",
            message=f"{store / commit.path / tar.path}: gives an index with sha256 {found[:12]}, committed "
            f"{idx.sha256[:12]}: the tar is damaged; restore it from a copy, or dump the shard again",
        )
    stored = file_sha256(path) if path.is_file() else None
    if stored == idx.sha256:
        return IndexState(shard=shard, state="sound")
    message = f"{path}: {'is missing' if stored is None else f'sha256 is {stored[:12]}'}, committed {idx.sha256[:12]}"
    if not write:
        return IndexState(shard=shard, state="repairable", message=message)
    replace_durably(path, content, store)
    return IndexState(shard=shard, state="rebuilt", message=message)
