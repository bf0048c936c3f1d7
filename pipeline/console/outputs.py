"""Options that name a file or folder to write, and what they may replace.

The rule, for every command (docs/files.md):

* an input of the command is never overwritten, not even with --force;
* an existing file is replaced only if it is empty, if the same command wrote it (seen by its content), or
  with --force;
* an existing folder is used only if it is empty, if the same command made it, or with --force.

So a command can be repeated, and a mistyped path destroys nothing.
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
    """Add `--force`: replace a file that another program wrote."""
    return click.option("--force", is_flag=True, help="Replace an existing file, but never an input of the command.")(
        command
    )


def never(path: Path) -> bool:
    """The test for files that people edit: not even an earlier output of the command is replaced."""
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
    """Refuse a file that must not be written, before any work is done.

    Args:
        option: name of the option, for errors.
        out: the file to write.
        is_ours: whether the same command wrote an existing file.
        reads: files that the command reads, and folders from which it reads files; paths that do not exist are ignored.
        closed: folders to which no file may be added: stores.
        force: replace a file that another program wrote.

    Raises:
        InputError: another program wrote it, or the command reads it.
        OSError: it is not a regular file, or cannot be created.
    """
    check_is_file_or_absent(out)
    for place in map(Path, closed):
        if _is_in(out, place):
            raise InputError(
                f"{option} {out}: lies in the store {place}, which must not contain other files; choose another path"
            )
    is_there = os.path.lexists(out)
    replaced = is_there and out.exists() and out.stat().st_size > 0
    ours = replaced and is_ours(out)
    for read in (Path(read) for read in reads if read is not None):
        if _same(out, read) or (replaced and not ours and read.is_dir() and _is_in(out, read)):
            raise InputError(f"{option} {out}: is an input of the command ({read}); choose another path")
    if replaced and not ours and not force:
        raise InputError(f"{option} {out}: already exists; choose another path, remove it, or replace it with --force")
    _check_can_be_made(out)


def claim_folder(option: str, out: Path, is_ours: IsOurs, *, reads: Iterable[Path], force: bool | None) -> None:
    """Refuse a folder that must not be written to, before any work is done.

    Args:
        option: name of the option, for errors.
        out: the folder.
        is_ours: whether the same command made an existing folder.
        reads: files and folders that the command reads.
        force: use a folder that another program made; None if the command has no such option.

    Raises:
        InputError: another program made it, or the command reads it.
        OSError: it is a file, or cannot be created.
    """
    for read in reads:
        if _same(out, read):
            raise InputError(f"{option} {out}: is an input of the command; choose another folder")
    if out.exists() and not out.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(out))
    if out.exists() and any(out.iterdir()) and not is_ours(out) and not force:
        also = "" if force is None else ", or use --force"
        raise InputError(f"{option} {out}: is not empty and was not made by this command; choose another folder{also}")
    _check_can_be_made(out / "file")


def _same(out: Path, read: Path) -> bool:
    """Whether two paths are one file, also through symbolic and hard links."""
    if out.resolve() == read.resolve():
        return True
    return out.exists() and read.exists() and out.samefile(read)


def _is_in(out: Path, folder: Path) -> bool:
    return out.resolve().is_relative_to(folder.resolve())


def _check_can_be_made(path: Path) -> None:
    """Find a missing permission now, not after hours of work."""
    folder = path.resolve().parent
    while not folder.exists():
        folder = folder.parent
    if not folder.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(folder))
    if not os.access(folder, os.W_OK | os.X_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(folder))
