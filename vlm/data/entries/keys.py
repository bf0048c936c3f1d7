"""Keys of an entry and of its turns other than those that its conversation is made of.

A key that other training programs act on (a video, tools, a weight of the whole sample) makes the entry unusable,
unless its value requests nothing, or what is done anyway. `alignkd data stats` counts all other keys.
docs/inputs.md has the table.
"""

import re
from collections.abc import Iterator, Mapping
from collections.abc import Set as AbstractSet
from functools import lru_cache
from typing import Any

from alignkd.vlm.data.entries.content import part_keys
from alignkd.vlm.data.entries.dialects import ENTRY_KEYS, Conversation, conversation_of
from alignkd.vlm.data.entries.images import extension_of
from alignkd.vlm.data.entries.plain import is_nothing, plain
from alignkd.vlm.data.source import Answers
from alignkd.vlm.errors import SampleError, one_line

SYSTEM_KEYS = ("system", "system_prompt", "system_message")

_IMAGE = ("names an image", "put its path under 'image'")
_PICTURE = ("is an image", "call it 'image'")
_VIDEO = ("names a video", "save frames as image files under 'image', or remove the sample")
_FRAMES = ("names frames of a video", "put their paths under 'image'")
_AUDIO = ("names a recording", "remove the sample")
_TOOLS = ("describes tools", "remove the sample, or the key")
_PREFERENCE = (
    "is an answer of preference data",
    "set data.pairs to true, or write the wanted answer as the last gpt turn and remove the key",
)
_OTHER_TURNS = ("is a conversation", "keep this one or 'conversations'")
_REASONING = ("is a part of the answer", "put it into 'value', or remove the key")
_WEIGHT = (
    "decides how much the sample is trained on",
    "every sample has weight 1; remove the sample or the key, or give one value per turn",
)
_MASK = (
    "decides what of an answer is trained on",
    "write 'loss' (1: train on the answer, 0: do not), or remove the key",
)
_PART = ("is a part of the question", "put it into the question, or remove the key")
_EARLIER = ("holds earlier turns", "write all turns as 'messages'")

# Keys in lower case -> what other programs use them for, and what to do.
_MEANINGS: Mapping[str, tuple[str, str]] = {
    **dict.fromkeys(("video", "videos", "video_path", "video_paths", "video_file", "video_url", "video_urls"), _VIDEO),
    **dict.fromkeys(("frame", "frames", "video_frames"), _FRAMES),
    **dict.fromkeys(("audio", "audios", "audio_path", "audio_paths", "audio_file", "audio_url", "audio_urls"), _AUDIO),
    **dict.fromkeys(("tools", "functions"), _TOOLS),
    **dict.fromkeys(("chosen", "rejected"), _PREFERENCE),
    **dict.fromkeys(("messages", "conversation", "dialog", "dialogue"), _OTHER_TURNS),
}
# Keys that add something to a pair of a question and an answer.
_PAIR_MEANINGS: Mapping[str, tuple[str, str]] = {
    **dict.fromkeys(("choices", "options", "context", "hint", "passage", "input"), _PART),
    **dict.fromkeys(("history", "conversation_history"), _EARLIER),
    **dict.fromkeys(("reasoning_content", "reasoning", "thinking"), _REASONING),
}
_IMAGE_KEYS = frozenset(
    f"{name}{ending}"
    for name in ("image", "images", "img", "imgs", "picture", "pictures", "photo", "photos", "screenshot")
    for ending in (
        "",
        "_path",
        "_paths",
        "_file",
        "_files",
        "_name",
        "_names",
        "_id",
        "_ids",
        "_url",
        "_urls",
        "_base64",
    )
) | {"pixel_values"}
_NUMBERED_IMAGE = re.compile(r"(?:image|img|picture)_?[0-9]+")
# Names of files of any kind; only the name of a picture counts as an image.
_FILE_KEYS = frozenset(("file_name", "filename"))
_PICTURES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff")
_TURN_MEANINGS: Mapping[str, tuple[str, str]] = {
    **dict.fromkeys(("image", "images", "image_url"), ("names an image", "put its path under 'image' of the entry")),
    **{key: _MEANINGS[key] for key in ("video", "videos", "audio", "audios")},
    **dict.fromkeys(("mask", "train_detail"), _MASK),
    **dict.fromkeys(("tool_calls", "function_call"), ("is a call of a tool", "remove the sample")),
    **dict.fromkeys(("reasoning_content", "reasoning", "thinking"), _REASONING),
}
# 1 or true: train on it; 0 or false: do not.
_WEIGHTS = ("loss", "weight", "loss_mask", "loss_weight", "loss_scale", "sample_weight")
TRAINED = frozenset((*_WEIGHTS, "train", "trained", "training", "trainable"))
# The opposite: 1 or true means do not train on it.
_MASKED = frozenset(("masked", "mask_loss", "ignore_loss", "ignore", "skip"))
LOSS_KEYS = TRAINED | _MASKED
GENERATED = "generated"
"""The key of a turn that a model wrote, see `entries/answers/generated.py`."""
_READ_OF_TURNS = LOSS_KEYS | {GENERATED}
_HUMP = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")


def check_entry_keys(
    entry: Mapping[str, Any], *, read: AbstractSet[str], has_images: bool, is_pair: bool = False
) -> None:
    """Refuse an entry whose other keys request something that is not supported.

    Args:
        read: keys that the conversation and its images are made of.
        has_images: the sample has images.
        is_pair: the conversation is a question and an answer under keys of their own.

    Raises:
        SampleError: names the key, its value, its meaning in other programs and what to do.
    """
    for key, value in entry.items():
        if key in read:
            continue
        if not (name := _known(key)):
            if not has_images and _is_picture(value):
                raise SampleError(_refusal(f"key {shown(key)}", value, _PICTURE))
            continue
        meaning = _meaning(name, value, has_images=has_images)
        if meaning is None and is_pair and not is_nothing(value):
            meaning = _PAIR_MEANINGS.get(name)
        if meaning is not None:
            raise SampleError(_refusal(f"key {shown(key)}", value, meaning))


def check_turn_keys(number: int, keys: Mapping[str, Any]) -> None:
    """As `check_entry_keys`, for the keys of turn `number` beside its text; not for those about training."""
    for key, value in keys.items():
        meaning = _TURN_MEANINGS.get(name_of(key))
        if meaning is not None and not is_nothing(value):
            raise SampleError(_refusal(f"turn {number}: key {shown(key)}", value, meaning))


def keys_not_read(entry: Any, answers: Answers = "given") -> Iterator[str]:
    """Each key of an entry, of its turns (as `messages[].KEY`) and of their parts that is not read, once.

    Args:
        answers: as the data set has them.
    """
    if not isinstance(entry, dict):
        return
    entry = plain(entry)
    try:
        conversation = conversation_of(entry, answers)
    except SampleError:
        conversation = Conversation(key="", read=ENTRY_KEYS | {"conversations"}, turns=())
    yield from (key for key in entry if key not in conversation.read and not _is_read(key))
    turns = conversation.turns
    others = dict.fromkeys(key for turn in turns for key in turn.keys if name_of(key) not in _READ_OF_TURNS)
    yield from (f"{conversation.key}[].{key}" for key in others)
    parts = dict.fromkeys(key for turn in turns for key in part_keys(turn.content))
    yield from (f"{conversation.key}[].content[].{key}" for key in parts)


@lru_cache(maxsize=1024)
def name_of(key: str) -> str:
    """One name for `imageUrl`, `image-url` and `IMAGE_URL`."""
    return _HUMP.sub("_", key).lower().replace("-", "_")


def shown(value: Any) -> str:
    """A value for a message."""
    text = one_line(repr(value))
    return text if len(text) <= 60 else f"{text[:57]}..."


def _is_read(key: str) -> bool:
    """Whether a key is read beside those of the conversation, or checked to request what is done anyway."""
    name = name_of(key)
    return name in LOSS_KEYS or name in SYSTEM_KEYS


@lru_cache(maxsize=1024)
def _known(key: str) -> str:
    """The key's name in the tables above; empty if it is in none."""
    name = name_of(key)
    tables = (_MEANINGS, _PAIR_MEANINGS, _IMAGE_KEYS, _FILE_KEYS, LOSS_KEYS)
    is_known = any(name in keys for keys in tables) or _NUMBERED_IMAGE.fullmatch(name) is not None
    return name if is_known else ""


def _meaning(name: str, value: Any, *, has_images: bool) -> tuple[str, str] | None:
    """What another program would do with the key; None if nothing, or if it is done anyway."""
    if name in LOSS_KEYS:  # a list has a value for each turn
        return None if isinstance(value, list) or _is_done_anyway(name, value) else _WEIGHT
    if is_nothing(value):
        return None
    if name in _FILE_KEYS and not str(value).lower().endswith(_PICTURES):
        return None
    if name in _IMAGE_KEYS or name in _FILE_KEYS or _NUMBERED_IMAGE.fullmatch(name) is not None:
        return None if has_images else _IMAGE  # next to an image it gives the source of the image
    return _MEANINGS.get(name)


def _is_picture(value: Any) -> bool:
    """Whether a value has the bytes of an image, in a form of `entries/images.py`, or is a list of them."""
    if isinstance(value, list):
        return any(_is_picture(item) for item in value)
    content = value.get("bytes") if isinstance(value, dict) else value
    return isinstance(content, bytes) and extension_of(content) != ""


def _is_done_anyway(name: str, value: Any) -> bool:
    """Every sample has weight 1."""
    return value is None or (isinstance(value, bool | int | float) and value == (name in TRAINED))


def _refusal(where: str, value: Any, meaning: tuple[str, str]) -> str:
    what, step = meaning
    # leave out texts and paths, so that equal reasons can be counted
    found = f" ({value})" if isinstance(value, bool | int | float) else ""
    return f"{where}{found} is not read; in other programs it {what}; {step}"
