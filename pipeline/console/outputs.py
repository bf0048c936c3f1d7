"""Options that name a file or folder to write: what they may replace.

The rule, for every command (docs/files.md):

* what the command reads is never written, with --force neither;
* an existing file is replaced only if it is empty, or the same command wrote it (seen by its content), or with --force;
* an existing folder is used only if it is empty, or the same command made it, or with --force.

So the same command can be run twice, and a mistyped path destroys nothing.
"""

import errno
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

import click

from alignkd.disk.whole_file import check_is_file_or_absent
from alignkd.vlm.errors import InputError

Command = TypeVar("Command", bound=Callable[..., Any])
IsOurs = Callable[[Path], bool]

REPLACES = "Replaces only what this command wrote, see --force."


def force_option(command: Command) -> Command:
    """`--force`: replace what the command did not write."""
    return click.option("--force", is_flag=True, help="Replace an existing file; never one that the command reads.")(
        command
    )


def never(path: Path) -> bool:
    """For files that people edit: not even an earlier one of ours is replaced."""
    return False


def claim_file(
    option: str,
    out: Path,
    is_ours: IsOurs,
    *,
    reads: Iterable[Path | str | None],
    closed: Iterable[Path | str] = (),
    force: bool,
) -> None:
    """Refuse a file that may not be written, before any work is done for it.

    Args:
        option: names it in errors.
        is_ours: whether the same command wrote an existing file.
        reads: files that the command reads, and folders of which it reads files; what is no path here is passed over.
        closed: folders in which nothing may be added either: stores.
        force: replace what is not ours.

    Raises:
        InputError: it exists and is not ours, or is read by the command.
        OSError: there is something that is no file, or it cannot be created there.
    """
    check_is_file_or_absent(out)
    for place in map(Path, closed):
        if _is_in(out, place):
            raise InputError(
                f"{option} {out}: lies in the store {place}, which holds nothing else; choose another path"
            )
    is_there = os.path.lexists(out)
    replaced = is_there and out.exists() and out.stat().st_size > 0
    ours = replaced and is_ours(out)
    for read in (Path(read) for read in reads if read is not None):
        if _same(out, read) or (replaced and not ours and read.is_dir() and _is_in(out, read)):
            raise InputError(f"{option} {out}: is among what the command reads ({read}); choose another path")
    if replaced and not ours and not force:
        raise InputError(f"{option} {out}: exists already; choose another path, remove it, or replace it by --force")
    _check_can_be_made(out)


def claim_folder(option: str, out: Path, is_ours: IsOurs, *, reads: Iterable[Path], force: bool | None) -> None:
    """Refuse a folder that may not be written to, before any work is done for it.

    Args:
        force: use a folder that is not ours; None where there is no such option.

    Raises:
        InputError: it holds something that is not ours, or is read by the command.
        OSError: it is a file, or cannot be created there.
    """
    for read in reads:
        if _same(out, read):
            raise InputError(f"{option} {out}: is what the command reads; choose another folder")
    if out.exists() and not out.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(out))
    if out.exists() and any(out.iterdir()) and not is_ours(out) and not force:
        also = "" if force is None else ", or use --force"
        raise InputError(f"{option} {out}: not empty and not made by this command; choose another folder{also}")
    _check_can_be_made(out / "file")


def _same(out: Path, read: Path) -> bool:
    """Also through links, hard ones included."""
    if out.resolve() == read.resolve():
        return True
    return out.exists() and read.exists() and out.samefile(read)


def _is_in(out: Path, folder: Path) -> bool:
    return out.resolve().is_relative_to(folder.resolve())


def _check_can_be_made(path: Path) -> None:
    """A missing permission is found now, not after hours of work."""
    folder = path.resolve().parent
    while not folder.exists():
        folder = folder.parent
    if not folder.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(folder))
    if not os.access(folder, os.W_OK | os.X_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(folder))
