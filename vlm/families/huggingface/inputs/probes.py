"""Fixed texts, conversations and image sizes: equal files do not prove equal tokens in another library version."""

import re

from alignkd.vlm.data.turns import Turn
from alignkd.vlm.families.huggingface.inputs.images import ImageEncoder
from alignkd.vlm.families.huggingface.inputs.text.chat import ChatTemplate
from alignkd.vlm.families.huggingface.inputs.text.messages import messages_of
from alignkd.vlm.families.huggingface.inputs.text.text_tokens import FastTokenizer

SIZES = ((640, 480), (300, 900))
_TEXTS = (
    "Hello world",
    "one\ntwo\t three\r\n\n",
    "3.14 and 1234567890",
    "na\u00efve \u4e2d\u6587 \U0001f600\U0001f3fd \ufb01 \u2460",
    "e\u0301   ",
)
_QUESTION, _ANSWER = Turn("human", "<image>\nWhat is in the picture?"), Turn("gpt", "Two cats.")
_AGAIN, _SECOND = Turn("human", "Are they asleep?"), Turn("gpt", "Yes, both.")
_CONVERSATIONS = {"<conversation 1>": [_QUESTION, _ANSWER], "<conversation 2>": [_QUESTION, _ANSWER, _AGAIN, _SECOND]}
_IMAGE = re.compile(r"<image of ([0-9]+) x ([0-9]+)>")


def probes() -> list[str]:
    """Names of all probes; that of a text is the text."""
    return [*_TEXTS, *_CONVERSATIONS, *(f"<image of {width} x {height}>" for width, height in SIZES)]


def is_of_image(name: str) -> bool:
    """Whether a probe is that of an image's tokens."""
    return _IMAGE.fullmatch(name) is not None


def probed_ids(template: ChatTemplate, tokenizer: FastTokenizer, images: ImageEncoder, name: str) -> list[int]:
    """Ids of a text, of a rendered conversation (its placeholder not replaced), or of an image's tokens.

    Of the ids of an image only the runs are given: id, length of its run, next id.

    Args:
        name: of a probe of this or an earlier version; any other text is a probe of that text.
    """
    if name in _CONVERSATIONS:
        return tokenizer.plain(template.render(messages_of(_CONVERSATIONS[name])))
    if (size := _IMAGE.fullmatch(name)) is not None:
        return _runs(tokenizer.plain(images.replacement((int(size[1]), int(size[2])), 1)))
    return tokenizer.plain(name)


def _runs(ids: list[int]) -> list[int]:
    runs: list[list[int]] = []
    for token in ids:
        if runs and runs[-1][0] == token:
            runs[-1][1] += 1
        else:
            runs.append([token, 1])
    return [number for run in runs for number in run]
