"""The folder for a user's caches, also for a user without a home folder (`docker run --user 1234`)."""

import os
import stat
import tempfile
from pathlib import Path


def cache_home() -> Path:
    """XDG_CACHE_HOME, else `~/.cache`, else a folder of this user below the folder for temporary files."""
    if given := os.environ.get("XDG_CACHE_HOME"):
        return Path(given)
    return Path.home() / ".cache" if has_home() else _temporary()


def has_home() -> bool:
    """Whether HOME is set or the user database has the user."""
    try:
        Path.home()
    except RuntimeError:
        return False
    return True


def _temporary() -> Path:
    """A folder that only this user can write to; the same at every call, unless another user owns its name."""
    folder = Path(tempfile.gettempdir()) / f"alignkd-cache-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    found = folder.lstat()
    if stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid():
        return folder
    return Path(tempfile.mkdtemp(prefix="alignkd-cache-"))
