"""Where the index of a store lies: in the store's folder, else in the cache of this user."""

import errno
import hashlib
import os
import stat
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from alignkd.storage.errors import StoreError
from alignkd.storage.files.exclusive import Lock
from alignkd.storage.files.leftovers import BROWSE
from alignkd.storage.files.local import LocalFiles
from alignkd.storage.files.source import StoreFiles
from alignkd.storage.remote.settings import settings_from_environment

FILE = "index.sqlite"
LOCK = "index.lock"
# size and crc32c of a complete index
SEAL = "index.crc32c"


def index_folder(files: StoreFiles) -> Path:
    """A folder in which an index can be written; made if necessary.

    Raises:
        StoreError: neither the store's folder nor the cache can be written.
    """
    tried = []
    for folder in _candidates(files):
        try:
            _check_writable(folder)
        except OSError as error:
            tried.append(f"{folder}: {error.strerror}")
        else:
            return folder
    raise StoreError(
        f"index of {files.location}: {'; '.join(tried)}; set ALIGNKD_CACHE to a folder that can be written"
    )


def _candidates(files: StoreFiles) -> Iterator[Path]:
    if isinstance(files, LocalFiles):
        yield files.root / BROWSE
        name = str(files.root.resolve())
    else:
        name = files.location
    readable = "".join(letter if letter.isalnum() else "-" for letter in Path(name).name)[:40] or "store"
    digest = hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:16]
    yield settings_from_environment().cache_folder / "browse" / f"{readable}-{digest}"


def _check_writable(folder: Path) -> None:
    """Raises OSError where a file cannot be made, locked and removed, and where a stranger has put a link or a pipe."""
    folder.mkdir(parents=True, exist_ok=True)
    if folder.is_symlink():
        raise OSError(errno.ELOOP, "is a link")
    for path in folder.iterdir():
        if not stat.S_ISREG(path.lstat().st_mode):
            raise OSError(errno.EINVAL, f"{path.name} is not a file")
    probe = folder / f".probe-{os.getpid()}"
    try:
        with probe.open("xb"):
            pass
        if (lock := Lock.take(probe)) is not None:
            lock.release()
    except FileExistsError:  # another thread of this process
        return
    finally:
        with suppress(OSError):
            probe.unlink()
