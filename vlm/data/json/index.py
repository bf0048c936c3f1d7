"""Byte ranges of the entries of a JSON list or of JSON lines, found in one pass without loading the file."""

import json
import re
from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from alignkd.vlm.data.json.window import WINDOW_BYTES, BrokenJsonError, Window, WrongKindError

WHITE_SPACE = re.compile(r"[ \t\n\r]*")
BLANKS = " \t\n\r\v\f"
# A first line longer than this is not searched for its end: the file is one JSON value.
LONGEST_FIRST_LINE = 64 << 20
# A result this near to the end of a window may change with more text: `1` of `1.5e-3`, half of `\ud83d\ude80`.
LOOKAHEAD = 16
NUMBER_CHARACTERS = frozenset("0123456789+-.eE")


@dataclass(frozen=True, kw_only=True, eq=False)
class EntryIndex:
    """Positions of the entries of a file.

    Attributes:
        starts, ends: int64 [entries], byte ranges `start:end`.
        sha256: sha256 of the whole file, 64 hex digits.
        num_bytes: size of the file as read.
    """

    starts: NDArray[np.int64]
    ends: NDArray[np.int64]
    sha256: str
    num_bytes: int


def index_entries(
    stream: BinaryIO, *, lines: bool | None, window: int = WINDOW_BYTES, progress: Callable[[int], None] | None = None
) -> EntryIndex:
    """Read a whole stream once and find its entries.

    Args:
        stream: positioned at its start.
        lines: True for JSON lines, unless the text begins with a list; False for one JSON list; None to decide by the
            first line: JSON lines if it is a whole object that is not all of the text.
        window: bytes held at once, more only for an entry that is longer.
        progress: called with the number of bytes read so far, once per window.

    Raises:
        JsonError: if `json.loads` refuses the text, or if it is neither a list nor JSON lines.
    """
    source = Window(stream, window, progress)
    starts, ends = array("q"), array("q")
    for start, end in (_line_ranges if _is_lines(source, lines) else _list_ranges)(source):
        starts.append(start)
        ends.append(end)
    return EntryIndex(
        starts=np.array(starts, np.int64),
        ends=np.array(ends, np.int64),
        sha256=source.digest.hexdigest(),
        num_bytes=source.num_bytes,
    )


def _is_lines(window: Window, lines: bool | None) -> bool:
    if lines is False:
        return False
    first = _Scan(window).peek()
    if first == "[" or lines is True or first != "{":
        return lines is True and first != "["
    return _begins_with_a_line(window)


def _begins_with_a_line(window: Window) -> bool:
    """Whether the first line is a whole JSON object, and more than white space follows it."""
    scan = _Scan(window)
    scan.peek()
    while (newline := window.text.find("\n", scan.at)) < 0:
        if window.at_end or len(window.text) > LONGEST_FIRST_LINE:
            return False
        window.grow(0)
    try:
        scan.decoder.decode(window.text[scan.at : newline])
    except (ValueError, RecursionError):
        return False
    while not window.text[newline:].strip(BLANKS):
        if window.at_end:
            return False
        window.grow(0)
    return True


def _list_ranges(window: Window) -> Iterator[tuple[int, int]]:
    scan = _Scan(window)
    if scan.peek() != "[":
        _refuse_other_kind(scan)
    scan.step()
    mark = scan.peek()
    while mark != "]":
        yield scan.value()
        mark = scan.peek()
        if mark not in {",", "]"}:
            raise BrokenJsonError("Expecting ',' delimiter", scan.position)
        if mark == ",":
            scan.step()
            scan.peek()
    scan.step()
    if scan.peek():
        raise BrokenJsonError("Extra data", scan.position)


def _refuse_other_kind(scan: "_Scan") -> None:
    kinds = {"{": "object", '"': "string"}
    kind = kinds.get(scan.peek())
    raise BrokenJsonError("Expecting '['", scan.position) if kind is None else WrongKindError(kind, scan.position)


class _Scan:
    """A position in the window, from which a JSON list is read."""

    def __init__(self, window: Window) -> None:
        self.window, self.at, self.decoder = window, 0, json.JSONDecoder()

    @property
    def position(self) -> int:
        """Position in the file, in bytes."""
        return self.window.offset + self.at

    def peek(self) -> str:
        """Move to the next character that is not white space and return it; empty at the end of the file."""
        while True:
            match = WHITE_SPACE.match(self.window.text, self.at)
            self.at = match.end() if match else self.at
            if self.at < len(self.window.text) or self.window.at_end:
                return self.window.text[self.at : self.at + 1]
            self._grow()

    def step(self) -> None:
        """Move past the character that `peek` returned."""
        self.at += 1

    def value(self) -> tuple[int, int]:
        """Byte range of the JSON value that starts here; moves past it."""
        while (end := self._parse()) is None:
            self._grow()
        start, self.at = self.position, end
        return start, self.position

    def _grow(self) -> None:
        self.window.grow(self.at)
        self.at = 0

    def _parse(self) -> int | None:
        """End of the value in the window; None if more text is needed."""
        text, at_end = self.window.text, self.window.at_end
        try:
            _, end = self.decoder.raw_decode(text, self.at)
        except json.JSONDecodeError as error:
            # An open string is reported where it starts, everything else where it is.
            cut = error.msg.startswith("Unterminated string") or error.pos + LOOKAHEAD > len(text)
            if at_end or not cut:
                raise BrokenJsonError(error.msg, self.window.offset + error.pos) from None
        except (ValueError, RecursionError) as error:
            # Python refuses integers of thousands of digits, but not such floats.
            if at_end or isinstance(error, RecursionError) or text[-1] not in NUMBER_CHARACTERS:
                raise BrokenJsonError(beyond_limits(error), self.position) from None
        else:
            if at_end or end + LOOKAHEAD <= len(text):
                return end
        return None


def beyond_limits(error: Exception) -> str:
    """Describe valid JSON that Python's reader refuses."""
    return "nested too deeply" if isinstance(error, RecursionError) else str(error).split(";")[0]


def _line_ranges(window: Window) -> Iterator[tuple[int, int]]:
    scan, decoder = _Scan(window), json.JSONDecoder()
    scan.peek()
    at = scan.at
    while True:
        newline = window.text.find("\n", at)
        if newline < 0 and not window.at_end:
            window.grow(at)
            at = 0
            continue
        end = newline if newline >= 0 else len(window.text)
        line = window.text[at:end]
        if line.strip(BLANKS):
            _check_line(decoder, line, window.offset + at)
            yield window.offset + at, window.offset + end
        if newline < 0:
            return
        at = newline + 1


def _check_line(decoder: json.JSONDecoder, line: str, position: int) -> None:
    try:
        decoder.decode(line)
    except json.JSONDecodeError as error:
        raise BrokenJsonError(error.msg, position + error.pos) from None
    except (ValueError, RecursionError) as error:
        raise BrokenJsonError(beyond_limits(error), position) from None
