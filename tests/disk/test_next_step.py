"""Every cause has its own next step; room and permission are spoken of only where they are the cause."""

import errno
import os
from pathlib import Path

import pytest

from alignkd.disk.next_step import is_no_room, next_step, reason
from alignkd.disk.opening import check_readable

ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
PERMISSION = {errno.EACCES, errno.EPERM}
USUAL = [
    *(errno.ENOENT, errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.EMFILE, errno.ENFILE),
    *(errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EROFS, errno.ELOOP, errno.EBUSY, errno.ENOMEM, errno.EPIPE),
    *(errno.ECONNREFUSED, errno.EADDRINUSE, errno.ENOTEMPTY, errno.ENODEV, errno.EHOSTDOWN),
]


def step(number: int) -> str:
    return next_step(OSError(number, os.strerror(number)))


def test_room_and_permission_only_where_they_are_the_cause() -> None:
    of = {number: step(number) for number in errno.errorcode}
    assert {number for number, text in of.items() if "free some space" in text} == ROOM - {errno.EFBIG}
    assert {number for number, text in of.items() if "permission" in text} == PERMISSION
    assert {number for number in of if is_no_room(OSError(number, ""))} == ROOM
    assert all(text and "\n" not in text and not text.endswith(".") for text in of.values())


def test_usual_causes_have_a_step_of_their_own() -> None:
    assert step(errno.ENOTTY) == next_step(OSError("of a library"))  # what is not in the table
    assert not [errno.errorcode[number] for number in USUAL if step(number) == step(errno.ENOTTY)]


def test_reason_is_the_systems_wording_or_the_text() -> None:
    assert reason(OSError(errno.EACCES, "Permission denied", "x")) == "Permission denied"
    assert reason(OSError("two\nlines")) == "two lines" and reason(OSError()) == "OSError"


def test_whether_a_file_can_be_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_bytes(b"x")
    check_readable(tmp_path / "file")
    os.mkfifo(tmp_path / "pipe")  # nobody writes to it: open() would wait for ever
    for name, number in (("absent", errno.ENOENT), ("", errno.EISDIR), ("pipe", errno.ENODEV)):
        with pytest.raises(OSError) as caught:
            check_readable(tmp_path / name)
        assert (caught.value.errno, caught.value.filename) == (number, str(tmp_path / name))

    def fails(descriptor: int, size: int) -> bytes:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "read", fails)
    with pytest.raises(OSError) as caught:
        check_readable(tmp_path / "file")
    assert (caught.value.errno, caught.value.filename) == (errno.EIO, str(tmp_path / "file"))
