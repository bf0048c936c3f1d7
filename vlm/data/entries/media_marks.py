"""Marks in the text of a sample without an image that other programs replace by an image, a video or a recording.

`<video>`, `<audio>` and `<img>` are also HTML tags, and a text may be about HTML. They count as marks only where data
sets write marks: at the start of a human turn or alone on a line of it, and without a closing tag.
"""

import re
from collections.abc import Sequence

from alignkd.vlm.data.turns import Turn
from alignkd.vlm.errors import SampleError

# Ordinary text does not contain these tokens of Qwen-VL, Phi, Llama, InternVL, LLaVA and of interleaved data.
_TOKEN = re.compile(
    r"<\|(?:image|img|video|audio|vision)[\w-]*\|>|<img>[^<]*</img>|<image[ _-]?\d+>"
    r"|<(?:Image|IMAGE|Video|VIDEO|Audio|AUDIO)>"
    r"|<(?:IMG_CONTEXT|ImageHere|ImageFeature|im_patch|im_start|image_placeholder|image_pad|video_placeholder)>"
)
_TAG = r"<(?P<tag>video|audio|img|speech)>"
_ALONE = re.compile(rf"\A\s*{_TAG}|^[ \t]*{_TAG.replace('tag', 'line')}[ \t]*$", re.MULTILINE)
_ANY = re.compile(rf"{_TOKEN.pattern}|{_TAG}")
_NO_IMAGE = "has no image; write <image> and name the file under 'image', or remove the sample"


def check_marks(turns: Sequence[Turn], *, has_images: bool = False) -> None:
    """Refuse turns with such a mark, for a sample without an image, or whose images have no `<image>`.

    Args:
        has_images: the sample has images.

    Raises:
        SampleError: names the turn and the mark.
    """
    for number, turn in enumerate(turns):
        if turn.speaker == "human" and "<" in turn.value and (mark := _mark(turn.value)) is not None:
            raise SampleError(
                f"turn {number} holds {mark!r}, which other programs replace by media, but the sample "
                + ("has no <image>; write <image> in its place" if has_images else _NO_IMAGE)
            )


def marks_in(turns: Sequence[Turn]) -> set[str]:
    """Every such mark at any position. `check_marks` accepts some of them as text; `data stats` counts them."""
    return {found[0] for turn in turns if "<" in turn.value for found in _ANY.finditer(turn.value)}


def _mark(text: str) -> str | None:
    if (found := _TOKEN.search(text)) is not None:
        return found[0][:40]
    for found in _ALONE.finditer(text):
        name = found["tag"] or found["line"]
        if f"</{name}>" not in text:
            return f"<{name}>"
    return None
