"""The first words of a conversation, for a row of the list."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from alignkd.storage.errors import StoreError
from alignkd.storage.read.store import StoreReader

LENGTH = 140
_IMAGE_MARK = re.compile(r"<image>\s*|\s*<image>")


def excerpts(reader: StoreReader, positions: Sequence[int | None]) -> list[str | None]:
    """One for each position; None for none, and for a record that cannot be read."""
    return [None if position is None else _excerpt(reader, position) for position in positions]


def _excerpt(reader: StoreReader, position: int) -> str | None:
    try:
        return excerpt(reader.conversation(position))
    except (StoreError, KeyError, TypeError, ValueError):  # the page of the record says what is wrong
        return None


def excerpt(turns: Sequence[Mapping[str, Any]]) -> str:
    """The first `LENGTH` characters of all turns; a dash is between two, and marks of images are left out."""
    texts = [_IMAGE_MARK.sub("", str(turn.get("value", ""))) for turn in turns if isinstance(turn, Mapping)]
    found = " – ".join(" ".join(text[: 2 * LENGTH].split()) for text in texts if text.strip())
    return found if len(found) <= LENGTH else found[: LENGTH - 1].rstrip() + "…"
