"""A question of a benchmark, as it is put to a model."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeGuard


@dataclass(frozen=True, kw_only=True)
class Question:
    """One line of a question file.

    Attributes:
        id: `question_id` of the answers file, of the type that the question file has. Not unique in TextVQA.
        turn: text of the user's turn without the image placeholder, verbatim.
        prompt: field `prompt` of the answers file; differs from `turn` in sqa and mmbench.
        image: file of the image, or its encoded bytes (mmbench); None for a question without an image.
        pads_image: whether the image is padded as the checkpoint sets it; False (sqa): it is resized and cropped.
        max_new_tokens: largest number of generated tokens.
        fields: further fields of the line in the answers file (mmbench: `round_id`, `options`, `option_char`).
    """

    id: str | int
    turn: str
    prompt: str
    image: Path | bytes | None
    pads_image: bool = True
    max_new_tokens: int = 128
    fields: Mapping[str, object] = field(default_factory=dict)


def is_id(value: object) -> TypeGuard[str | int]:
    """Whether a value of JSON is the id of a question."""
    return isinstance(value, str | int) and not isinstance(value, bool)
