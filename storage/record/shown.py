"""The `repr` of records and targets: shapes and dtypes instead of arrays, so that a notebook can show them."""

from dataclasses import fields
from typing import Any

import numpy as np

TEXT_CHARACTERS = 60


def show_fields(instance: Any) -> str:
    """The `repr` of a dataclass instance on one line per field; fields that are None are left out."""
    values = {field.name: getattr(instance, field.name) for field in fields(instance) if field.repr}
    # further targets of a store without any are left out too
    lines = [f"  {name}={show(value)}," for name, value in values.items() if value is not None and not _is_empty(value)]
    return "\n".join([f"{type(instance).__name__}(", *lines, ")"])


def _is_empty(value: Any) -> bool:
    return isinstance(value, dict) and not value


def show(value: Any) -> str:
    """A short text for a field: `int32[25]`, `4096 bytes`, `2 turns`, a shortened string."""
    if isinstance(value, np.ndarray):
        return f"{value.dtype}{list(value.shape)}"
    if isinstance(value, bytes):
        return f"{len(value)} bytes"
    if isinstance(value, tuple):
        return f"({', '.join(map(show, value))}{',' if len(value) == 1 else ''})"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{name}: {show(entry)}' for name, entry in value.items())}}}"
    if isinstance(value, list):
        return f"{len(value)} turns"
    if isinstance(value, str) and len(value) > TEXT_CHARACTERS:
        return f"{value[:TEXT_CHARACTERS]!r}..."
    return repr(value).replace("\n", "\n  ")
