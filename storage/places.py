"""The files of a store at a path or URL. The client of remote stores is imported when a URL needs it."""

from pathlib import Path
from typing import TYPE_CHECKING

from alignkd.storage.files.hub_location import is_hub_url
from alignkd.storage.files.local import LocalFiles
from alignkd.storage.files.location import FSSPEC_EXTRAS, as_location, check_location, parse_location
from alignkd.storage.files.source import StoreFiles
from alignkd.storage.schema.manifest import Manifest, read_manifest

if TYPE_CHECKING:
    from alignkd.storage.remote.settings import RemoteSettings


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
    return open_location(place)


def open_location(location: str, settings: "RemoteSettings | None" = None) -> StoreFiles:
    """The files of the store at a URL.

    Raises:
        StoreError: an invalid URL, or one that contains credentials.
    """
    from alignkd.storage.remote.settings import settings_from_environment

    settings = settings or settings_from_environment()
    if is_hub_url(location):
        from alignkd.storage.remote.hub.files import HubFiles
        from alignkd.storage.remote.hub.store import HubStore

        return HubFiles(HubStore(location, settings), settings)
    from alignkd.storage.remote.files import HttpFiles, ListedFiles

    scheme = parse_location(location).scheme
    if scheme == "s3":
        from alignkd.storage.remote.s3.store import S3Store

        return ListedFiles(S3Store(location, settings), settings)
    if scheme in FSSPEC_EXTRAS:
        from alignkd.storage.remote.fsspec_store import FsspecStore

        return ListedFiles(FsspecStore(location, settings), settings)
    from alignkd.storage.remote.http import HttpStore

    return HttpFiles(HttpStore(location, settings), settings)


def load_manifest(location: Path | str) -> Manifest:
    """The manifest of the store at a path or URL; raises as `read_manifest`."""
    return read_manifest(open_files(location))
