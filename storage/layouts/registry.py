"""The layouts by the name that a manifest and a configuration give them.

To add a layout: a folder next to `tar` and `zarr` with a class like `Backend` (`protocol.py`), a function here that
imports it, and its name in `_LAYOUTS`. The functions import, because a process needs the layout of its store only.
"""

from collections.abc import Callable

from alignkd.storage.errors import StoreError
from alignkd.storage.layouts.protocol import Backend


def _zarr() -> Backend:
    from alignkd.storage.layouts.zarr.backend import ZarrBackend

    return ZarrBackend()


def _webdataset() -> Backend:
    from alignkd.storage.layouts.tar.backend import WebDatasetBackend

    return WebDatasetBackend()


_LAYOUTS: dict[str, Callable[[], Backend]] = {"zarr": _zarr, "webdataset": _webdataset}


def layout_names() -> tuple[str, ...]:
    """The names that `backend` may have, the default first."""
    return tuple(_LAYOUTS)


def get_backend(name: str, where: str = "") -> Backend:
    """The layout of that name.

    Args:
        where: the file or setting that holds the name, for the message.

    Raises:
        StoreError: this version has no such layout.
    """
    if name not in _LAYOUTS:
        raise StoreError(
            f"{where}{': ' if where else ''}backend is {name!r:.60}, this alignkd has {', '.join(_LAYOUTS)}; choose "
            "one of these, or open the store with the alignkd that wrote it"
        )
    return _LAYOUTS[name]()
