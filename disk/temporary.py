"""Temporary folders that are also removed where a process ends without leaving its blocks."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# folder -> the process that made it: a forked one must not remove its parent's
_folders: dict[Path, int] = {}


@contextmanager
def temporary_folder(prefix: str) -> Iterator[Path]:
    """A new folder, removed at the end of the block with all its content, and by `remove_temporary_folders`.

    Files that cannot be removed, because a thread is still writing them, are left.
    """
    folder = Path(tempfile.mkdtemp(prefix=prefix))
    _folders[folder] = os.getpid()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        _folders.pop(folder, None)


def remove_temporary_folders() -> None:
    """Remove those whose blocks have not ended; call it before `os._exit`, which ends no block."""
    for folder, process in list(_folders.items()):
        if process == os.getpid():
            shutil.rmtree(folder, ignore_errors=True)
