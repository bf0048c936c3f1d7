"""The files of a store at a path or URL. The client of remote stores is imported when a URL needs it."""

from pathlib import Path

from alignkd.storage.files.local import LocalFiles
from alignkd.storage.files.location import as_location, check_location
from alignkd.storage.files.source import StoreFiles
from alignkd.storage.schema.manifest import Manifest, read_manifest


def open_files(location: Path | str | StoreFiles) -> StoreFiles:
    """The files of the store at a path or URL; files that are open already are returned unchanged.

    Raises:
        StoreError: an unsupported scheme.
    """
    if not isinstance(location, Path | str):
        return location
    place = as_location(location)
    check_location(place)
    if isinstance(place, Path):
        return LocalFiles(place)
    from alignkd.storage.remote.files import open_location

    return open_location(place)


def load_manifest(location: Path | str) -> Manifest:
    """The manifest of the store at a path or URL; raises as `read_manifest`."""
    return read_manifest(open_files(location))
