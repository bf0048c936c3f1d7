"""One sample of a data set, whatever file it comes from."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alignkd.vlm.data.turns import Turn, conversations_of


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One entry of the data set.

    Attributes:
        index: position in the data set, from 0: the sample's identity within it.
        id: the user's id; not unique across merged data sets.
        images: name of each image, in the order of their `<image>`: a path relative to `folder`, or where `contents`
            has its bytes, the name under which the data file holds it. Empty for a text-only sample, and where a
            `problem` hides them.
        turns: the conversation; empty where a `problem` hides it.
        problem: why no target can be computed of the entry, or None.
        unanswered: the only problem is that questions lack an answer: human turns without a gpt turn after them. Only
            in data sets with `answers: missing`; `alignkd generate` answers them in their order.
        contents: the image files that the data file itself holds, None for each image that is a file of its own; empty
            if all are.
        folder: image folder of the sample's data set; None if it has none.
    """

    index: int
    id: str
    images: tuple[str, ...]
    turns: tuple[Turn, ...]
    problem: str | None = None
    unanswered: bool = False
    contents: tuple[bytes | None, ...] = ()
    folder: Path | None = None

    def conversations(self) -> list[dict[str, Any]]:
        """The conversation as stores hold it, see `conversations_of`; `turns_of` is the inverse."""
        return conversations_of(self.turns)
