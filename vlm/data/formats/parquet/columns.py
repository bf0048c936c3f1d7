"""Which columns of a table may belong to a conversation, by their names."""

import re
from collections.abc import Iterable

_WORDS = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|[^A-Za-z0-9]+")

# Singular words. A column that has any of them in its name is read.
_CONVERSATION = frozenset(
    "conversation message dialog dialogue turn chat text txt caption instruction question query prompt problem input "
    "user human".split()
)
_ANSWER = frozenset("output response completion answer solution assistant gpt target chosen rejected".split())
_IMAGE = frozenset(
    "image img picture pic photo screenshot figure jpg jpeg png webp gif bmp pixel file filename".split()
)
_OTHER_MEDIA = frozenset("video frame audio speech sound mp3 mp4 wav".split())
_PART = frozenset("choice option context hint passage history reasoning thinking".split())
_MEANING = frozenset(
    "id key uid uuid system tool function role "
    "loss weight train trainable training trained mask masked ignore skip".split()
)
_READ = _CONVERSATION | _ANSWER | _IMAGE | _OTHER_MEDIA | _PART | _MEANING


def is_read(column: str) -> bool:
    """Whether the column may decide what a sample is: conversation, images, id, system prompt, masks, other media."""
    return not _words(column).isdisjoint(_READ)


def may_hold_conversation(columns: Iterable[str]) -> bool:
    """Whether one of the columns may have a conversation, or its question."""
    return any(not _words(column).isdisjoint(_CONVERSATION) for column in columns)


def _words(column: str) -> set[str]:
    """The words of `imageUrls`, `image_urls` and `image-urls`, in lower case and singular."""
    words = {word.lower() for word in _WORDS.split(column) if word}
    return words | {word.removesuffix("s") for word in words} | {word.rstrip("0123456789") for word in words}
