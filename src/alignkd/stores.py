"""Opening a store from a script or a notebook."""

from pathlib import Path

from alignkd.storage.read.store import StoreReader


def open_store(path: Path | str, *, allow_incomplete: bool = False) -> StoreReader:
    """Open a store for reading: a sequence of records.

    `store[i]` reads one record and verifies the checksum of every byte of it; `store[a:b]` is a list. Loads neither
    torch nor zarr.

    Args:
        path: the store's folder, or its URL (s3://, https://).
        allow_incomplete: open a store whose dump has not finished; shards that are committed later are not seen.

    Raises:
        StoreError: there is no store, or shards are missing and `allow_incomplete` is not set.
        CorruptStoreError: a file is missing or has another size than committed.
    """
    if not isinstance(path, Path | str):
        raise TypeError(f"path is {path!r:.60}, expected the path or URL of a store")
    return StoreReader(path, allow_incomplete=allow_incomplete)
