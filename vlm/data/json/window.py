"""The part of a JSON file that is in memory, as text with one character per byte; its bytes are checked and hashed.

The text is latin-1: JSON syntax is ASCII, so a value parses as latin-1 exactly when it parses as UTF-8, and positions
in the text are positions in the file. UTF-8 is checked separately.
"""

import codecs
import hashlib
from collections.abc import Callable
from typing import BinaryIO

WINDOW_BYTES = 1 << 20
BYTE_ORDER_MARK = codecs.BOM_UTF8


class JsonError(ValueError):
    """Why a file cannot be indexed: `reason` and `position` in bytes."""

    def __init__(self, reason: str, position: int) -> None:
        super().__init__(reason)
        self.reason, self.position = reason, position


class BrokenJsonError(JsonError):
    """The text is not JSON."""


class NotUtf8Error(JsonError):
    """The bytes are not UTF-8."""


class WrongKindError(JsonError):
    """The file is JSON of another kind than expected; `reason` is the kind."""


class Window:
    """The part of the file in memory.

    Attributes:
        text: the part, as latin-1.
        offset: position of its first byte in the file.
        at_end: whether it reaches the end of the file.
    """

    def __init__(self, stream: BinaryIO, size: int, progress: Callable[[int], None] | None) -> None:
        self.stream, self.size, self.progress = stream, size, progress
        self.digest, self.num_bytes, self.at_end = hashlib.sha256(), 0, False
        self._utf8 = codecs.getincrementaldecoder("utf-8")()
        self.text, self.offset = "", 0
        self._read(len(BYTE_ORDER_MARK))
        if self.text == BYTE_ORDER_MARK.decode("latin-1"):
            self.text, self.offset = "", len(BYTE_ORDER_MARK)

    def grow(self, keep_from: int) -> None:
        """Drop the text before `keep_from` and read more: one window, or as much as is kept."""
        self.text = self.text[keep_from:]
        self.offset += keep_from
        self._read(max(self.size, len(self.text)))

    def _read(self, num_bytes: int) -> None:
        data = self.stream.read(num_bytes)
        self.at_end = not data
        self._check_utf8(data)
        self.digest.update(data)
        self.num_bytes += len(data)
        self.text += data.decode("latin-1")
        if self.progress is not None:
            self.progress(self.num_bytes)

    def _check_utf8(self, data: bytes) -> None:
        pending = len(self._utf8.getstate()[0])  # bytes of a character that was cut by the end of the last window
        try:
            self._utf8.decode(data, final=self.at_end)
        except UnicodeDecodeError as error:
            raise NotUtf8Error(error.reason, self.num_bytes - pending + error.start) from None


def line_and_column(stream: BinaryIO, position: int) -> tuple[int, int]:
    """Line and column (from 1) of a byte of a stream positioned at its start; columns count characters."""
    line, column = 1, 1
    head = stream.read(min(position, len(BYTE_ORDER_MARK)))
    block = b"" if head == BYTE_ORDER_MARK else head
    left = position - len(head)
    while True:
        if newlines := block.count(b"\n"):
            line, column = line + newlines, 1
            block = block[block.rindex(b"\n") + 1 :]
        column += len(block.translate(None, delete=bytes(range(0x80, 0xC0))))  # count one byte per character
        block = stream.read(min(left, WINDOW_BYTES))
        left -= len(block)
        if not block:
            return line, column
