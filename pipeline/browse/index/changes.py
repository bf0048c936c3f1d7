"""Whether files of a store in a folder were replaced, without reading them."""

from pathlib import Path

from alignkd.storage.schema.commit_record import COMMITS
from alignkd.storage.schema.manifest import FILE_NAME

# device, inode, time of the last change in nanoseconds, size
Mark = tuple[int, int, int, int]


def mark_of(path: Path) -> Mark | None:
    """Differs after a file was replaced, or after a file of a folder was added, replaced or removed; None: absent.

    Raises:
        OSError: it cannot be looked at.
    """
    try:
        found = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    return found.st_dev, found.st_ino, found.st_mtime_ns, found.st_size


def store_marks(store: Path) -> tuple[Mark | None, Mark | None]:
    """Differs after the manifest was replaced, or a shard was committed, done again or removed."""
    return mark_of(store / FILE_NAME), mark_of(store / COMMITS)
