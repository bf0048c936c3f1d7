"""Marks in the text of a sample without an image that other programs replace by an image, a video or a recording.

`<video>`, `<audio>` and `<img>` are also tags of HTML, and a text may be about HTML. So they are taken for a mark only
where data sets write marks: at the head of a human turn or alone on a line of it, and without the closing tag.
"""

import re
from collections.abc import Sequence

from alignkd.vlm.data.turns import Turn
from alignkd.vlm.errors import SampleError

# No text that people write holds these: tokens of Qwen-VL, Phi, Llama, InternVL, LLaVA and of interleaved data.
_TOKEN = re.compile(
    r"<\|(?:image|img|video|audio|vision)[\w-]*\|>|<img>[^<]*</img>|<image[ _-]?\d+>"
    r"|<(?:Image|IMAGE|Video|VIDEO|Audio|AUDIO)>"
    r"|<(?:IMG_CONTEXT|ImageHere|ImageFeature|im_patch|im_start|image_placeholder|image_pad|video_placeholder)>"
)
_TAG = r"<(?P<tag>video|audio|img|speech)>"
_ALONE = re.compile(rf"\A\s*{_TAG}|^[ \t]*{_TAG.replace('tag', 'line')}[ \t]*$", re.MULTILINE)
_ANY = re.compile(rf"{_TOKEN.pattern}|{_TAG}")


def check_marks(turns: Sequence[Turn]) -> None:
    """Refuse the turns of a sample without an image that hold such a mark.

    Raises:
        SampleError: names the turn and the mark.
    """
    for number, turn in enumerate(turns):
        if turn.speaker == "human" and "<" in turn.value and (mark := _mark(turn.value)) is not None:
            raise SampleError(
                f"turn {number} holds {mark!r}, elsewhere the place of an image, a video or a recording, but the "
                "sample has no image; write <image> and name the file under 'image', or remove the sample"
            )


def marks_in(turns: Sequence[Turn]) -> set[str]:
    """Every such mark, wherever it is: what `check_marks` lets pass is text, and `data stats` counts it."""
    return {found[0] for turn in turns if "<" in turn.value for found in _ANY.finditer(turn.value)}


def _mark(text: str) -> str | None:
    if (found := _TOKEN.search(text)) is not None:
        return found[0][:40]
    for found in _ALONE.finditer(text):
        name = found["tag"] or found["line"]
        if f"</{name}>" not in text:
            return f"<{name}>"
    return None
