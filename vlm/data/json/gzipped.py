"""A gzipped file, unpacked once into a temporary file without a name."""

import gzip
import os
import tempfile
import weakref
import zlib
from collections.abc import Callable
from io import BufferedReader
from pathlib import Path
from typing import Any, BinaryIO, cast

from alignkd.disk.next_step import is_no_room, next_step, reason
from alignkd.vlm.data.known_formats import HEAD_BYTES, known_format
from alignkd.vlm.errors import InputError

MAGIC = b"\x1f\x8b"
_BROKEN = (EOFError, zlib.error, gzip.BadGzipFile)


class Unpacked:
    """The temporary file that holds the unpacked text, open in this process.

    It has no name, so it disappears with the last process that has it open. Forked processes inherit its descriptor.
    Pickled copies open it by the descriptor of the process that unpacked it, as long as that process runs.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._descriptor: int | None = os.dup(file.fileno())
        weakref.finalize(self, os.close, self._descriptor)
        self._origin = f"/proc/{os.getpid()}/fd/{self._descriptor}"
        self._inode = self._inode_of(self._descriptor)

    def descriptor(self) -> int | None:
        """A descriptor of the file in this process; None if no process holds the file any more."""
        if self._descriptor is None:
            try:
                found = os.open(self._origin, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
            except OSError:
                return None
            if self._inode_of(found) != self._inode:  # the number belongs to another file by now
                os.close(found)
                return None
            weakref.finalize(self, os.close, found)
            self._descriptor = found
        return self._descriptor

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_descriptor": None}

    @staticmethod
    def _inode_of(descriptor: int) -> tuple[int, int]:
        status = os.fstat(descriptor)
        return status.st_dev, status.st_ino


class Unpacking:
    """A gzipped file as a stream of its text. What is read is also written to a temporary file.

    The temporary file lies in the folder that Python's `tempfile` chooses (`TMPDIR`).

    Args:
        packed: the gzipped file; it is read from its start.
        path: its name, for messages.
        progress: called with the packed bytes read so far.

    Raises:
        InputError: the temporary file cannot be made.
    """

    def __init__(self, packed: BufferedReader, path: Path, progress: Callable[[int], None] | None = None) -> None:
        packed.seek(0)
        self._packed, self._path, self._progress = packed, path, progress
        self._stream = gzip.GzipFile(fileobj=packed, mode="rb")
        try:
            self.file = cast(BinaryIO, tempfile.TemporaryFile(prefix="alignkd-"))  # noqa: SIM115
        except OSError as error:
            raise self._not_written(error) from error

    def read(self, size: int) -> bytes:
        """Up to `size` bytes of the text.

        Raises:
            InputError: the gzip data is damaged or truncated, or the temporary file cannot be written.
        """
        try:
            data = self._stream.read(size)
        except _BROKEN as error:
            raise _broken(self._path, error) from error
        try:
            self.file.write(data)
        except OSError as error:
            raise self._not_written(error) from error
        if self._progress is not None:
            self._progress(self._packed.tell())
        return data

    def finished(self) -> Unpacked:
        """The file with the whole text, after all of it was read."""
        try:
            self.file.flush()
        except OSError as error:
            raise self._not_written(error) from error
        with self.file:
            return Unpacked(self.file)

    def _not_written(self, error: OSError) -> InputError:
        folder = tempfile.tempdir or "a temporary folder"
        step = "free some space there, or set TMPDIR to another folder" if is_no_room(error) else next_step(error)
        return InputError(f"{self._path}: cannot be unpacked into {folder} ({reason(error)}); {step}")


def is_gzipped(stream: BufferedReader) -> bool:
    """Whether a stream at its start begins as gzip does; it is not moved."""
    return stream.peek(len(MAGIC))[: len(MAGIC)] == MAGIC


def check_content(stream: BufferedReader, path: Path) -> None:
    """Refuse a gzipped file whose content is of another format than text, before all of it is unpacked.

    Raises:
        InputError: names the format of the content, such as a tar archive.
    """
    try:
        head = gzip.GzipFile(fileobj=stream, mode="rb").read(HEAD_BYTES)
    except _BROKEN as error:
        raise _broken(path, error) from error
    if (found := known_format(head)) is not None:
        raise InputError(f"{path}: {found.name} inside gzip, expected JSON inside gzip; unpack it with gunzip")


def _broken(path: Path, error: Exception) -> InputError:
    return InputError(f"{path}: broken gzip ({error}); fetch or write the file again")
