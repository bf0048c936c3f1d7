"""Small data sets for tests of vision-language models: a LLaVA-style JSON file and drawn images."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from PIL import Image

IMAGES: Final = {
    "square.png": (64, 64),
    "wide.png": (160, 40),
    "tall.jpg": (44, 130),
    "large.png": (200, 150),
    "small.png": (30, 26),
    "of people/snapshot é.png": (100, 60),
}
"""File -> width and height in pixels."""


def _entry(name: str, images: Sequence[str], *turns: str) -> dict[str, Any]:
    """An entry whose turns are by the human and the assistant alternately."""
    said = [{"from": ("human", "gpt")[n % 2], "value": text} for n, text in enumerate(turns)]
    image: dict[str, Any] = {"image": images[0] if len(images) == 1 else list(images)} if images else {}
    return {"id": name, **image, "conversations": said}


ENTRIES: Final = [
    _entry("one image", ["square.png"], "<image>\nwhat colour is the cat?", "the cat is black"),
    _entry("text/only", [], "is the sofa red, green or blue?", "It is blue."),
    _entry(
        "两张图片 é №2",
        ["large.png", "tall.jpg"],
        "<image>\ndescribe the image",
        "a dog and two birds",
        "and this one? <image>",
        "a window\n\nnear the sofa",
    ),
    _entry("wide & 'quoted' \"id\"", ["wide.png"], "what is in the picture?\n<image>", "a cat on the sofa"),
    _entry(
        "tall;id=5", ["tall.jpg"], "<image>\nHow many birds?", "two birds.", "why?", "I counted: 1, 2.", "ok", "good"
    ),
    _entry("😀 emoji", ["small.png"], "<image>\nwhat is it? 😀", "😀👍🏽 قطة على الأريكة"),
    _entry("of people's", ["of people/snapshot é.png"], "<image>\n图片里有什么？", "今天天气很好。\n你好，世界"),
    _entry(
        "-1",
        ["small.png", "wide.png", "square.png"],
        "<image>\n<image>\n<image>\nwhich of these is a house?",
        "the last one",
    ),
    _entry("line\nbreak,\ttab %20 $HOME \\ #", [], "name a colour", "red", "one more", "green\n- and\n- blue"),
    _entry("same image", ["square.png"], "<image>\nwhat colour is the dog?", "  the dog is brown"),
]


@dataclass(frozen=True)
class TinyData:
    """A written data set: the JSON file, the folder of images and the entries of the file."""

    conversations: Path
    images: Path
    entries: list[dict[str, Any]]


def write(folder: Path, entries: Sequence[dict[str, Any]] = ENTRIES) -> TinyData:
    """Write `entries` to `folder/train.json` and the images that they name to `folder/images`."""
    images = folder / "images"
    for number, (name, size) in enumerate(IMAGES.items()):
        (images / name).parent.mkdir(parents=True, exist_ok=True)
        drawn(*size, seed=number).save(images / name)
    conversations = folder / "train.json"
    conversations.write_text(json.dumps(list(entries), ensure_ascii=False, indent=1), encoding="utf-8")
    return TinyData(conversations, images, list(entries))


def drawn(width: int, height: int, *, seed: int) -> Image.Image:
    """A picture of soft spots whose colours `seed` decides."""
    spots = np.random.default_rng(seed).integers(0, 255, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(spots).resize((width, height), Image.Resampling.BICUBIC)
