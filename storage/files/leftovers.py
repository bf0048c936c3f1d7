"""Droppings: files that desktops, file servers and editors leave in any folder; neither part of a store nor damage."""

import re
from collections.abc import Iterable

# holds the index of `alignkd shards browse`, no part of the store; it may be deleted at any time
BROWSE = ".browse"

_NAMES = (
    r"\._.*", r"\.DS_Store", r"\.localized", r"Icon\r", r"\.apdisk",  # macOS; ._* on foreign file systems
    r"Thumbs\.db(:encryptable)?", r"ehthumbs(_vista)?\.db", r"desktop\.ini",  # Windows
    r"\.nfs[0-9a-f]+", r"\.fuse_hidden[0-9a-f]+", r"\.smbdelete.*",  # deleted while a process has them open
    r"\.directory", r"\.goutputstream-.*", r"\.~lock\..*#",  # Linux desktops, LibreOffice
    r".*~", r"\..*\.sw[a-p]", r"#.*#", r"\.#.*", r"4913",  # Emacs, Vim and others
)  # fmt: skip
# folders of the same origin
_FOLDERS = (
    r"\.Spotlight-V100",
    r"\.fseventsd",
    r"\.TemporaryItems",
    r"\.AppleDouble",
    r"@eaDir",
    r"\.ipynb_checkpoints",
)
# may contain what a user wants back, or belong to the file system: reported, never removed
_KEPT = (
    r"\.Trash(es|-\d+)?",
    r"\$RECYCLE\.BIN",
    r"System Volume Information",
    r"lost\+found",
    r"\.snapshots?",
    r"\.zfs",
)
_REMOVABLE = re.compile("|".join((*_NAMES, *_FOLDERS)), re.IGNORECASE | re.DOTALL)
_KNOWN = re.compile("|".join((*_NAMES, *_FOLDERS, *_KEPT)), re.IGNORECASE | re.DOTALL)


def is_dropping(path: str) -> bool:
    """Whether a path relative to a store is a dropping, or lies in one."""
    return any(_KNOWN.fullmatch(part) for part in path.split("/"))


def removable_droppings(paths: Iterable[str]) -> list[str]:
    """The droppings among some paths that may be removed, sorted; for a path in a dropped folder, that folder."""
    found = set()
    for path in paths:
        parts = path.split("/")
        for end, part in enumerate(parts, 1):
            if _KNOWN.fullmatch(part):
                if _REMOVABLE.fullmatch(part):
                    found.add("/".join(parts[:end]))
                break
    return sorted(found)
