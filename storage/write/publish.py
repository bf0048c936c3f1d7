"""The last steps of a shard: read it back, rename it into place, publish its commit record.

At every moment the process may be killed, and other writers may be doing the same shard. What makes it safe:
the folder stays locked from its creation until the record is published, also through the rename, so a
folder in place without a record and without a lock belongs to a dead writer and may be replaced.
"""

import errno
import time
from pathlib import Path

from alignkd.storage.errors import CorruptStoreError, StoreError
from alignkd.storage.files.exclusive import Lock, create_exclusively, fsync_path, read_anew, remove
from alignkd.storage.files.local import LocalFiles
from alignkd.storage.layouts.registry import get_backend
from alignkd.storage.schema.columns import columns_of
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
        read_anew(folder / entry.path)
    files = LocalFiles(folder.parent)
    problems = missing_or_resized(files, commit, folder.name) or foreign_files(files, commit, folder.name)
    if not problems:
        # every byte against the crc32c computed before writing; what describes the shard by sha256
        backend = get_backend(manifest.backend)
        source = backend.open(files, folder.name, manifest, columns_of(manifest), commit)
        source.check_descriptions()
        problems = source.damage(headers=False)
    if problems:
        raise CorruptStoreError(f"read back wrong after writing: {problems[0]}; check the disk and run again")


def publish(store: Path, folder: Path, commit: CommitRecord) -> bool:
    """Make the shard part of the store; False if another writer has done so first.

    Raises:
        StoreError: another writer holds the place and does not finish.
    """
    if not _move_into_place(store, folder, commit.shard):
        return False
    target, record = shard_folder(store, commit.shard), commit_path(store, commit.shard)
    try:
        fsync_path(store / SHARDS)
        # where locks do not work across machines, the exclusive creation still lets exactly one win
        return create_exclusively(record, seal(commit.document()), store)
    except BaseException:
        # after the link the shard is committed, whatever failed then
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
        # whoever held the lock may have committed since we looked
        if not record.exists():
            remove(target)
    finally:
        lock.release()
