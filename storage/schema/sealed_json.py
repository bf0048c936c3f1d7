"""Small JSON files that verify their own integrity: sorted keys, fixed white space, a crc32c inside.

Because the bytes of a document are fixed, any changed byte is found, also in white space and in unused fields.
"""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from alignkd.storage.errors import CorruptStoreError
from alignkd.storage.files.checksum import crc32c
from alignkd.storage.files.local import read_file

SEAL = "crc32c"
MAX_BYTES = 16 << 20
# the line of the checksum: only keys of the document itself follow a single blank
_LINE_BEGINS = b'\n "crc32c": "'
_LINE = re.compile(_LINE_BEGINS + rb'([0-9a-f]{8})"(,?)(?=\n)')


def canonical(document: dict[str, Any]) -> bytes:
    """The bytes of a JSON document that are hashed, sealed and compared."""
    return (json.dumps(document, indent=1, sort_keys=True) + "\n").encode()


def seal(document: dict[str, Any]) -> bytes:
    """Content of a file with the document and its checksum."""
    return canonical({**document, SEAL: f"{crc32c(canonical(document)):08x}"})


def unseal(path: Path, max_bytes: int = MAX_BYTES) -> dict[str, Any]:
    """The document in a sealed file, of which at most `max_bytes` are read.

    Raises:
        StoreError: the file is missing or cannot be read.
        CorruptStoreError: the bytes are not those that were written, or too many.
    """
    return unseal_bytes(read_file(path, max_bytes), str(path))


def unseal_bytes(data: bytes, where: str, left_out: Sequence[str] = ()) -> dict[str, Any]:
    """The document in the bytes of a sealed file.

    Args:
        where: names the file in errors.
        left_out: keys whose lists and objects are not parsed but replaced by null; their bytes are verified too.

    Raises:
        CorruptStoreError: the bytes are not those that were written.
    """
    try:
        line = _line(data)
        document = json.loads(_without(data, left_out))
        found = document.pop(SEAL)
    except (ValueError, KeyError, AttributeError, TypeError, RecursionError):
        raise CorruptStoreError(f"{where}: damaged, not a sealed JSON document; restore it from a copy") from None
    # the checksum is that of the file without its line; dumping the document again takes 50 times longer
    before = data[: line.start()] if line[2] else data[: line.start()].removesuffix(b",")
    expected = f"{crc32c(data[line.end() :], crc32c(before)):08x}"
    if found != expected:
        raise CorruptStoreError(
            f"{where}: damaged, crc32c is {found}, content gives {expected}; restore it from a copy"
        )
    return dict(document)


def _line(data: bytes) -> re.Match[bytes]:
    """The line of the checksum; it is found by its first bytes, which is faster than by the pattern."""
    line = _LINE.match(data, start) if (start := data.find(_LINE_BEGINS)) >= 0 else None
    if line is None or data.find(_LINE_BEGINS, line.end()) >= 0:
        raise ValueError("not one seal")
    return line


def _without(data: bytes, keys: Sequence[str]) -> bytes:
    """The JSON text with null in place of some lists and objects, which end where a line is not indented further."""
    for key in keys:
        start = data.find(f'\n "{key}": '.encode())
        begin = start + len(key) + 6
        if start >= 0 and data[begin : begin + 2] in (b"{\n", b"[\n"):
            end = data.find(b"\n }" if data[begin : begin + 1] == b"{" else b"\n ]", begin)
            data = data[:begin] + b"null" + data[end + 3 :]
    return data
