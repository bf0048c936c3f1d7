"""Conversations and pictures that are hard to label, for tests of every family."""

import io

import numpy as np
from PIL import Image

from alignkd.vlm.data.turns import Turn

SIZES = [(100, 60), (40, 40), (33, 200), (300, 50), (640, 480), (21, 21), (123, 457), (500, 90)]


def human(text: str) -> Turn:
    return Turn("human", text)


def gpt(text: str) -> Turn:
    return Turn("gpt", text)


# The turns of a conversation and the numbers of its pictures.
CONVERSATIONS: dict[str, tuple[list[Turn], list[int]]] = {
    "one image, two turns": (
        [
            human("<image>\nwhat colour is the cat?"),
            gpt("the cat is black"),
            human("how many birds?"),
            gpt("two birds."),
        ],
        [0],
    ),
    "text only": ([human("is the sofa red?"), gpt("It is blue.")], []),
    "two images in two turns, line breaks": (
        [
            human("<image>\ndescribe"),
            gpt("a dog\nand two\n\nbirds"),
            human("and this? <image>"),
            gpt("a window\n\nnear"),
        ],
        [1, 2],
    ),
    "three images in one turn, white space around answers": (
        [human("<image><image> compare <image>"), gpt(" in the middle "), human("more"), gpt("\n\nfirst\n")],
        [4, 5, 6],
    ),
    "Chinese, emoji, composed characters": (
        [human("今天天气? <image>"), gpt("今天天气很好。你好 🙂👩‍👩‍👧  \u00e9")],
        [3],
    ),
    "Arabic, tab, no-break space": ([human("قطة على الأريكة"), gpt("هذه قطة 🐈 \t tab\u00a0end")], []),
    "answers that repeat the question": (
        [human("say the cat the cat <image>"), gpt("say the cat the cat"), human("again the cat"), gpt("the cat")],
        [7],
    ),
    "answers with the names of the speakers": (
        [
            human("<image>\nq"),
            gpt("(a), [b]; {c}"),
            human("q2"),
            gpt("USER: user model ASSISTANT:"),
            human("q3"),
            gpt("..\n "),
        ],
        [2],
    ),
    "control characters": ([human("name one"), gpt("a\x00b\x1bc\x7f\u200b")], []),
    "a question without an answer at the end": ([human("<image> hi"), gpt("ho"), human("and?")], [0]),
    "markup": (
        [human("<b>bold</b> & {{ x }} {% y %}"), gpt("<table><tr>{{ messages }}</tr></table> {% endfor %}")],
        [],
    ),
}


def picture(number: int, form: str = "PNG") -> bytes:
    """The bytes of a picture of size `SIZES[number]`."""
    return picture_of(SIZES[number], seed=number, form=form)


def picture_of(size: tuple[int, int], *, seed: int = 0, form: str = "PNG") -> bytes:
    small = np.random.default_rng(seed).integers(0, 255, (5, 7, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(small).resize(size, Image.Resampling.BICUBIC).save(stream, form)
    return stream.getvalue()
