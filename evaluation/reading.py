"""Files of benchmarks: JSON, and JSON with one object per line. Errors name file, line and next step."""

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from alignkd.disk.opening import read_regular
from alignkd.vlm.errors import InputError, one_line, unreadable


def text_of_file(path: Path) -> str:
    """The text of a file in UTF-8 that is not empty; line ends become `\\n`.

    Raises:
        InputError: the file cannot be read, is empty, or is not UTF-8.
    """
    try:
        encoded = read_regular(path)
    except OSError as error:
        raise unreadable(path, error) from None
    try:
        text = io.TextIOWrapper(io.BytesIO(encoded), encoding="utf-8-sig").read()
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not a text in UTF-8 (byte {error.start}); copy the file again") from None
    if not text.strip():
        raise InputError(f"{path}: the file is empty; copy or generate it again")
    return text


def read_json(path: Path) -> Any:
    """The value of a JSON file; raises as `text_of_file`, and an InputError for text that is not JSON."""
    try:
        return json.loads(text_of_file(path))
    except ValueError as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path}: not JSON ({one_line(error)}); copy the file again") from None
    except RecursionError:
        raise InputError(f"{path}: not usable JSON (it is nested too deeply); copy the file again") from None


def read_json_lines(path: Path) -> Iterator[tuple[int, dict[str, object]]]:
    """Number (from 1) and object of every line; blank lines are passed over.

    Lines end at `\\n`, `\\r\\n` or `\\r` only: U+2028 inside of a text ends no line.

    Raises:
        InputError: as `text_of_file`; a line that is not one JSON object.
    """
    for number, line in enumerate(text_of_file(path).split("\n"), 1):
        if line.strip():
            yield number, _object(line, f"{path}: line {number}")


def _object(line: str, place: str) -> dict[str, object]:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{place}: not a JSON object ({one_line(error)}); write this line again") from None
    if not isinstance(value, dict):
        raise InputError(f"{place}: {type(value).__name__} instead of a JSON object; write one object per line")
    return value
