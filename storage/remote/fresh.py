"""A remote store read past what earlier readers have cached of it: what the server has now."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from pydantic import ByteSize

from alignkd.storage.errors import disk_errors
from alignkd.storage.files.exclusive import make_temporary_folder, remove, remove_leftovers

if TYPE_CHECKING:
    from alignkd.storage.remote.files import RemoteFiles

# what verification keeps of a store on the local disk, so that each byte is fetched once
MAX_KEPT_BYTES = 4 << 30


@contextmanager
def past_caches(files: "RemoteFiles") -> "Iterator[RemoteFiles]":
    """The same store for the length of a block, with a cache of its own that is empty at first.

    The cache lies in the staging folder and takes at most 4 GiB, less if the readers' cache is smaller.

    Raises:
        StoreError: the staging folder cannot be written.
    """
    staging = files.settings.staging_folder
    with disk_errors(f"staging folder {staging}"):
        staging.mkdir(mode=0o700, parents=True, exist_ok=True)
        remove_leftovers(staging)
        folder, lock = make_temporary_folder(staging, "verify")
    kept = ByteSize(min(files.settings.cache_bytes, MAX_KEPT_BYTES))
    fresh = files.with_settings(files.settings.model_copy(update={"cache_folder": folder, "cache_bytes": kept}))
    try:
        yield fresh
    finally:
        fresh.blocks.close()
        remove(folder)
        lock.release()
