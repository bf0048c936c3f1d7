"""Files that are whole or absent, with the mode of the umask."""

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from alignkd.disk.whole_file import write_whole, written_whole


@contextmanager
def umask(mask: int) -> Iterator[None]:
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


@pytest.mark.parametrize("mask", [0o022, 0o002, 0o077])
def test_the_mode_is_the_umasks_whoever_writes(tmp_path: Path, mask: int) -> None:
    with umask(mask):
        write_whole(tmp_path / "new" / "text", "é")
        with written_whole(tmp_path / "private") as aside:  # as safetensors does: another file of mode 0600
            other = aside.with_name("other")
            other.touch(mode=0o600)
            other.replace(aside)
    for name in ("new/text", "private"):
        assert stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o666 & ~mask, name
    assert (tmp_path / "new" / "text").read_bytes() == "é".encode()


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError(28, "No space left on device")])
def test_what_was_there_stays_when_writing_ends_early(tmp_path: Path, error: BaseException) -> None:
    write_whole(tmp_path / "file", "before")
    with pytest.raises((KeyboardInterrupt, OSError)), written_whole(tmp_path / "file") as aside:
        aside.write_text("half")
        raise error
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("file", "before")]


def test_a_link_is_followed_and_the_longest_name_written(tmp_path: Path) -> None:
    target, link, longest = tmp_path / "target", tmp_path / "link", tmp_path / ("n" * 255)
    write_whole(target, "old")
    link.symlink_to(target)
    write_whole(link, "new")
    assert link.is_symlink() and target.read_text() == "new"
    write_whole(longest, "x")
    assert longest.read_text() == "x"


def test_what_is_no_file_is_never_replaced(tmp_path: Path) -> None:
    """A rename of root's onto /dev/null makes a file of it."""
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match="not a regular file, but a pipe"):
        write_whole(tmp_path / "pipe", "x")
    with pytest.raises(IsADirectoryError):
        write_whole(tmp_path, "x")
    assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)


def test_errors_name_the_file_that_was_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("a file")
    with pytest.raises(NotADirectoryError):
        write_whole(tmp_path / "file" / "below", "x")

    def full(path: object, *arguments: object) -> int:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(os, "open", full)
    with pytest.raises(PermissionError) as caught:
        write_whole(tmp_path / "new", "x")
    assert caught.value.filename == str(tmp_path / "new")
