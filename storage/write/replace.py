"""Replacing a committed shard in one step: readers see the old shard or its successor, whole.

The successor lies in a folder with a new name, as shards in a bucket do. The commit record, which names the folder, is
replaced by one rename. If the process is killed before, the old shard remains valid. Folders that no record names are
removed by the next replacement of the shard, or by `gc`.
"""

import uuid
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from alignkd.storage.files.exclusive import fsync_path, locked_if_free, remove, replace_durably
from alignkd.storage.schema.commit_record import SHARDS, CommitRecord, commit_path, shard_name
from alignkd.storage.schema.sealed_json import seal


def successor(commit: CommitRecord) -> CommitRecord:
    """The record of a shard that replaces a committed one: unchanged but for a folder that no other writer has."""
    return replace(commit, folder=f"{shard_name(commit.shard)}-{uuid.uuid4().hex[:8]}")


def publish_successor(store: Path, folder: Path, commit: CommitRecord) -> None:
    """Replace the committed shard by a verified one in a temporary folder, whose lock the caller holds."""
    target, record, data = store / commit.path, commit_path(store, commit.shard), seal(commit.document())
    folder.rename(target)
    try:
        fsync_path(store / SHARDS)
        replace_durably(record, data, store)
    except BaseException:
        # after the rename the successor is committed, even if a later step failed
        if record.read_bytes() != data:
            remove(target)
        raise
    _remove_unnamed(store, commit)


def _remove_unnamed(store: Path, commit: CommitRecord) -> None:
    """Remove the predecessor and folders of killed writers of this shard; `gc` removes what cannot be removed now."""
    for path in (store / SHARDS).glob(f"{shard_name(commit.shard)}*"):
        if path.name != commit.folder and not path.is_symlink():
            with locked_if_free(path) as lock, suppress(OSError):  # NFS keeps files that a reader has open
                if lock is not None:
                    remove(path)
