"""Ids and texts in messages, cut to a readable length."""

from collections.abc import Sequence

from alignkd.vlm.errors import one_line

_MAX_CHARACTERS = 80


def some(ids: Sequence[object], limit: int = 3) -> str:
    """The first `limit` of some ids on one line, and how many more there are; long ids are cut."""
    listed = ", ".join(_shown(": ".join(map(str, one)) if isinstance(one, tuple) else str(one)) for one in ids[:limit])
    return listed if len(ids) <= limit else f"{listed} and {len(ids) - limit} more"


def quoted(text: str) -> str:
    """A text in quotes on one line; a long one is cut."""
    return repr(_cut(text))


def value_of(value: object) -> str:
    """A value of JSON on one line; a long one is cut."""
    return _cut(repr(value))


def _shown(text: str) -> str:
    return _cut(one_line(text))


def _cut(text: str) -> str:
    return text if len(text) <= _MAX_CHARACTERS else f"{text[:_MAX_CHARACTERS]}..."
