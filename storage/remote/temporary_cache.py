"""A cache of its own for one reader of a remote store, which so reads past what earlier readers have cached."""

from collections.abc import Iterator
from contextlib import contextmanager

from pydantic import ByteSize

from alignkd.storage.errors import disk_errors
from alignkd.storage.files.exclusive import make_temporary_folder, remove, remove_leftovers
from alignkd.storage.remote.settings import RemoteSettings

# each byte is fetched once, as long as what is read between two reads of it fits
MAX_KEPT_BYTES = 4 << 30


@contextmanager
def temporary_cache(settings: RemoteSettings) -> Iterator[RemoteSettings]:
    """The same settings with an empty cache in the staging folder, which is removed at the end of the block.

    The cache takes at most 4 GiB, less if the readers' cache is smaller.

    Raises:
        StoreError: the staging folder cannot be written.
    """
    staging = settings.staging_folder
    with disk_errors(f"staging folder {staging}"):
        staging.mkdir(mode=0o700, parents=True, exist_ok=True)
        remove_leftovers(staging)
        folder, lock = make_temporary_folder(staging, "verify")
    kept = ByteSize(min(settings.cache_bytes, MAX_KEPT_BYTES))
    try:
        yield settings.model_copy(update={"cache_folder": folder, "cache_bytes": kept})
    finally:
        remove(folder)
        lock.release()
