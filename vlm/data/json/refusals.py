"""Why a data file cannot be read, as one line: another format, another kind of JSON, or where the JSON is broken."""

import json
import re
from pathlib import Path
from typing import BinaryIO

from alignkd.vlm.data.json.window import BrokenJsonError, JsonError, NotUtf8Error, WrongKindError, line_and_column
from alignkd.vlm.data.known_formats import HEAD_BYTES, KnownFormat, known_format, known_text
from alignkd.vlm.errors import InputError, one_line

WANTED = "expected a JSON list of conversations, or JSON lines"
_FIRST_MEMBER = re.compile(r'\s*\{\s*("(?:[^"\\]|\\.)*")\s*:\s*(.)\s*(.[^:,\]}]{0,9}\s*:?)', re.DOTALL)


def json_refusal(path: Path, fault: JsonError, stream: BinaryIO) -> InputError:
    """The error for `fault` of the file.

    Args:
        stream: the file's text, from its start to `fault` at least; it is moved.
    """
    stream.seek(0)
    head = stream.read(HEAD_BYTES)
    if (found := _other_format(fault, head)) is not None:
        return InputError(f"{path}: {found.name}, {WANTED}; {found.step}")
    if isinstance(fault, NotUtf8Error):
        return InputError(f"{path}: not UTF-8 ({fault.reason} at byte {fault.position}); re-encode the file")
    if isinstance(fault, BrokenJsonError):
        return _broken(path, fault, stream, is_empty=not head)
    return InputError(f"{path}: {_other_kind(fault.reason, head)}")


def _other_format(fault: JsonError, head: bytes) -> KnownFormat | None:
    if isinstance(fault, WrongKindError):  # JSON, or a table whose first column name is quoted
        return known_text(head) if fault.reason == "string" else None
    is_at_start = isinstance(fault, BrokenJsonError) and not head[: fault.position].strip(b"\xef\xbb\xbf \t\r\n")
    return known_format(head) or (known_text(head) if is_at_start else None)


def _broken(path: Path, fault: BrokenJsonError, stream: BinaryIO, *, is_empty: bool) -> InputError:
    if is_empty:
        return InputError(f"{path}: the file is empty; give a JSON list of conversations")
    stream.seek(0)
    line, column = line_and_column(stream, fault.position)
    where = f"line {line}, column {column}"
    return InputError(f"{path}: broken JSON at {where} ({fault.reason}); repair or re-export the file")


def _other_kind(kind: str, head: bytes) -> str:
    """Describe a JSON text that is not a list, from its start."""
    plain = f"a JSON {kind}, expected a list of conversations; JSON lines end in .jsonl"
    found = _FIRST_MEMBER.match(head.removeprefix(b"\xef\xbb\xbf").decode("utf-8", "replace"))
    if found is None:
        return plain
    key, opening, first = one_line(json.loads(found[1]))[:40], found[2], found[3]
    if opening == "[" and first[0] == "{":
        return f"a JSON object with the list under {key!r}, {WANTED}; write the list alone: jq '.[\"{key}\"]'"
    if opening == "[" or (opening == "{" and re.match(r'"0"\s*:', first)):
        return f"a JSON object of columns (the first is {key!r}), {WANTED}; with pandas: to_json(orient='records')"
    if opening == "{":
        return f"a JSON object of entries (the first is {key!r}), {WANTED}; write them as a list: jq '[.[]]'"
    return plain
