"""Read a small JSON file as a whole."""

import json
from pathlib import Path
from typing import Any

from alignkd.disk.opening import read_regular
from alignkd.vlm.data.json.index import beyond_limits
from alignkd.vlm.data.known_formats import HEAD_BYTES, known_format
from alignkd.vlm.errors import InputError, unreadable


def read_json(path: Path) -> Any:
    """The JSON value in `path`.

    Raises:
        InputError: unreadable, or not JSON; names line and column.
    """
    try:
        data = read_regular(path)
    except OSError as error:
        raise unreadable(path, error) from error
    try:
        return json.loads(data)
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: {_why_no_json(data, error)}") from error
    except (RecursionError, ValueError) as error:
        raise InputError(f"{path}: cannot be read as JSON ({beyond_limits(error)}); re-export the file") from error


def _why_no_json(data: bytes, error: json.JSONDecodeError | UnicodeDecodeError) -> str:
    if (found := known_format(data[:HEAD_BYTES])) is not None:
        return f"{found.name}, expected JSON; {found.step}"
    if isinstance(error, UnicodeDecodeError):
        return f"not UTF-8 ({error.reason} at byte {error.start}); re-encode the file"
    return f"broken JSON at line {error.lineno}, column {error.colno} ({error.msg}); repair or re-export the file"
