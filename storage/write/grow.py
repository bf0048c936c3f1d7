"""Extending the list of additions in a store's manifest, by one of several writers that may do it at the same time."""

import time
from collections.abc import Callable
from pathlib import Path

from alignkd.storage.errors import StoreError
from alignkd.storage.files.exclusive import Lock, replace_durably
from alignkd.storage.schema.manifest import MAX_FILE_BYTES, Manifest
from alignkd.storage.schema.manifest_checks import check_same_manifest
from alignkd.storage.schema.read_from import grown_read_from
from alignkd.storage.schema.sealed_json import seal

PATIENCE_SECONDS = 60.0
POLL_SECONDS = 0.05


def grown(path: Path | str, found: Manifest, asked: Manifest) -> Manifest:
    """The manifest that a store needs for a writer: the one that it has, extended by additions that it lacks.

    Args:
        found: the store's manifest.
        asked: what the writer is to write.

    Raises:
        StoreError: other settings, or other additions.
    """
    check_same_manifest(path, found, asked)
    stored, wanted = found.additions or (), asked.additions or ()
    for number, (ours, theirs) in enumerate(zip(stored, wanted, strict=False), 1):
        if ours.content() != theirs.content():
            raise StoreError(
                f"store {path}: addition {number} is {ours.sources[-1].digest()} in the store, "
                f"{theirs.sources[-1].digest()} asked for; another process has added other data, run the command again"
            )
    if len(wanted) < len(stored):
        raise StoreError(
            f"store {path} has {found.num_samples} samples, {asked.num_samples} asked for: it has grown; run the "
            "command again with the whole list of data"
        )
    # the times of additions stay those of the store
    if len(wanted) == len(stored):
        return found
    read_from = grown_read_from(found.read_from, asked.read_from, found.num_samples)
    return found.changed(additions=(*stored, *wanted[len(stored) :]), read_from=read_from)


def sealed_manifest(path: Path | str, manifest: Manifest) -> bytes:
    """Content of a manifest's file.

    Raises:
        StoreError: it is larger than readers accept.
    """
    content = seal(manifest.model_dump())
    if len(content) > MAX_FILE_BYTES:
        raise StoreError(
            f"store {path}: its manifest has {len(content)} bytes, at most {MAX_FILE_BYTES} are allowed; join the data "
            "files to fewer ones"
        )
    return content


def grow_locked(file: Path, store: Path, change: Callable[[], Manifest]) -> Manifest:
    """Replace a manifest in a folder, under the lock of the file itself.

    Args:
        change: reads the manifest and returns the one to write; called while the lock is held.

    Raises:
        StoreError: as `change`; or another process holds the lock for long.
    """
    deadline = time.monotonic() + PATIENCE_SECONDS
    while (lock := Lock.take(file)) is None:  # also where the file was replaced a moment ago
        if time.monotonic() > deadline:
            raise StoreError(f"{file}: is locked by another process for more than {PATIENCE_SECONDS:.0f} s; end it")
        time.sleep(POLL_SECONDS)
    try:
        manifest = change()
        replace_durably(file, sealed_manifest(store, manifest), store)
        return manifest
    finally:
        lock.release()
