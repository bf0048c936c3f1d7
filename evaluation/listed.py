"""Ids and texts in messages, cut to a readable length."""

from collections.abc import Sequence

_MAX_CHARACTERS = 80


def some(ids: Sequence[object], limit: int = 3) -> str:
    """The first `limit` of some ids, and how many more there are."""
    listed = ", ".join(": ".join(map(str, one)) if isinstance(one, tuple) else str(one) for one in ids[:limit])
    return listed if len(ids) <= limit else f"{listed} and {len(ids) - limit} more"


def quoted(text: str) -> str:
    """A text in quotes on one line; a long one is cut."""
    return repr(text if len(text) <= _MAX_CHARACTERS else f"{text[:_MAX_CHARACTERS]}...")
