"""Values of Parquet rows and JSON as plain Python values."""

from typing import Any

_SCALARS = frozenset((str, bytes, bool, int, float, type(None)))


def plain(value: Any) -> Any:
    """The value with lists for arrays and tuples, Python numbers for NumPy's, and bytes for byte arrays and views."""
    if type(value) in _SCALARS:
        return value
    if isinstance(value, dict):
        return {str(key): item if type(item) in _SCALARS else plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [item if type(item) in _SCALARS else plain(item) for item in value]
    if isinstance(value, bytearray | memoryview):
        return bytes(value)
    if hasattr(value, "tolist"):  # arrays and scalars of NumPy
        return plain(value.tolist())
    return value


def filled(value: dict[str, Any]) -> dict[str, Any]:
    """An object without its null values: Parquet gives every object the keys of all objects of its column."""
    return {key: item for key, item in value.items() if item is not None}


def is_nothing(value: Any) -> bool:
    """Whether the value of a key requests nothing: null, false, white space, or empty."""
    if isinstance(value, str | bytes):
        return not value.strip()
    return value is None or value is False or value in ([], {})
