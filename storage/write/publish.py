"""The last steps of a shard: read it back, rename it into place, publish its commit record.

The process may be killed at every moment, and other writers may write the same shard. The folder is locked from its
creation until the record is published, also during the rename. So a folder in place without a record and without a
lock belongs to a dead writer and may be replaced.
"""

import errno
import time
from pathlib import Path

from alignkd.storage.errors import CorruptStoreError, StoreError
from alignkd.storage.files.exclusive import Lock, create_exclusively, drop_cached_pages, fsync_path, remove
from alignkd.storage.files.local import LocalFiles
from alignkd.storage.layouts.registry import get_backend
from alignkd.storage.schema.columns.shard import columns_of
from alignkd.storage.schema.commit_record import SHARDS, CommitRecord, commit_path, shard_folder
from alignkd.storage.schema.manifest import Manifest
from alignkd.storage.schema.sealed_json import seal
from alignkd.storage.schema.shard_files import foreign_files, missing_or_resized

PATIENCE_SECONDS = 60.0
POLL_SECONDS = 0.05


def read_back(folder: Path, commit: CommitRecord, manifest: Manifest) -> None:
    """Compare the finished shard on disk with what was meant to be written.

    Args:
        folder: where the shard lies now.

    Raises:
        CorruptStoreError: the disk, or this program, wrote something else.
    """
    for entry in commit.files:
        drop_cached_pages(folder / entry.path)
    files = LocalFiles(folder.parent)
    problems = missing_or_resized(files, commit, folder.name) or foreign_files(files, commit, folder.name)
    if not problems:
        # every byte against the crc32c computed before writing; descriptions of the shard against their sha256
        backend = get_backend(manifest.backend)
        source = backend.open(files, folder.name, manifest, columns_of(manifest), commit)
        source.check_descriptions()
        problems = source.damage(headers=False)
    if problems:
        raise CorruptStoreError(f"read back wrong after writing: {problems[0]}; check the disk and run again")


def publish(store: Path, folder: Path, commit: CommitRecord) -> bool:
    """Make the shard part of the store; False if another writer has committed it first.

    Raises:
        StoreError: another writer holds the folder and does not commit.
    """
    if not _move_into_place(store, folder, commit.shard):
        return False
    target, record = shard_folder(store, commit.shard), commit_path(store, commit.shard)
    try:
        fsync_path(store / SHARDS)
        # where locks do not work across machines, exclusive creation still lets exactly one writer commit
        return create_exclusively(record, seal(commit.document()), store)
    except BaseException:
        # once the record exists the shard is committed, even if a later step failed
        if not record.exists():
            remove(target)
        raise


def _move_into_place(store: Path, folder: Path, shard: int) -> bool:
    target, record = shard_folder(store, shard), commit_path(store, shard)
    deadline = time.monotonic() + PATIENCE_SECONDS
    while True:
        if record.exists():
            return False
        try:
            folder.rename(target)
            return True
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
        _remove_dead(target, record)
        if time.monotonic() > deadline:
            raise StoreError(f"{target} is locked by another process that does not commit; end it and run again")
        time.sleep(POLL_SECONDS)


def _remove_dead(target: Path, record: Path) -> None:
    """Remove a shard folder that a killed writer left between rename and commit."""
    lock = Lock.take(target)
    if lock is None:
        return
    try:
        # the owner of the lock may have committed in the meantime
        if not record.exists():
            remove(target)
    finally:
        lock.release()
