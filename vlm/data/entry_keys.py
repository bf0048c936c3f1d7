"""Keys of an entry and of its turns other than those that are read.

A key that other training programs act on (a video, a system prompt, a turn excluded from training) makes the entry
unusable, unless its value requests nothing, or what is done anyway. `alignkd data stats` counts all other keys.
docs/inputs.md has the table.
"""

import re
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any

from alignkd.vlm.data.turns import V1_SYSTEM
from alignkd.vlm.errors import SampleError, one_line

READ_KEYS = frozenset({"id", "image", "images", "conversations"})
READ_TURN_KEYS = frozenset({"from", "value"})

_IMAGE = ("names an image", "put its path under 'image'")
_VIDEO = ("names a video", "save frames as image files under 'image', or remove the sample")
_FRAMES = ("names frames of a video", "put their paths under 'image'")
_AUDIO = ("names a recording", "remove the sample")
_SYSTEM = ("is a system prompt", "the template has its own; put the text into the first human turn, or remove the key")
_TOOLS = ("describes tools", "remove the sample, or the key")
_PREFERENCE = ("is an answer of preference data", "write the wanted answer as the last gpt turn and remove the key")
_OTHER_TURNS = ("is a conversation", "keep this one or 'conversations'")
_REASONING = ("is a part of the answer", "put it into 'value', or remove the key")
_LOSS = (
    "decides what is trained on",
    "every gpt turn is trained on, with weight 1; remove the turn, the sample or the key",
)

# Keys in lower case -> what other programs use them for, and what to do.
_MEANINGS: Mapping[str, tuple[str, str]] = {
    **dict.fromkeys(("video", "videos", "video_path", "video_paths", "video_file", "video_url", "video_urls"), _VIDEO),
    **dict.fromkeys(("frame", "frames", "video_frames"), _FRAMES),
    **dict.fromkeys(("audio", "audios", "audio_path", "audio_paths", "audio_file", "audio_url", "audio_urls"), _AUDIO),
    **dict.fromkeys(("system", "system_prompt", "system_message"), _SYSTEM),
    **dict.fromkeys(("tools", "functions"), _TOOLS),
    **dict.fromkeys(("chosen", "rejected"), _PREFERENCE),
    **dict.fromkeys(("messages", "conversation", "dialog", "dialogue"), _OTHER_TURNS),
}
_IMAGE_KEYS = frozenset(
    f"{name}{ending}"
    for name in ("image", "images", "img", "imgs", "picture", "pictures")
    for ending in ("", "_path", "_paths", "_file", "_files", "_url", "_urls", "_base64")
) | {"pixel_values"}
# Names of files of any kind; only the name of a picture counts as an image.
_FILE_KEYS = frozenset(("file_name", "filename"))
_PICTURES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff")
_TURN_MEANINGS: Mapping[str, tuple[str, str]] = {
    **dict.fromkeys(("image", "images", "image_url"), ("names an image", "put its path under 'image' of the entry")),
    **{key: _MEANINGS[key] for key in ("video", "videos", "audio", "audios")},
    **dict.fromkeys(("tool_calls", "function_call"), ("is a call of a tool", "remove the sample")),
    **dict.fromkeys(("reasoning_content", "reasoning", "thinking"), _REASONING),
}
# 1 or true: train on it; 0 or false: do not.
_TRAINED = frozenset(
    ("loss", "weight", "train", "training", "trainable", "loss_mask", "loss_weight", "loss_scale", "sample_weight")
)
# The opposite: 1 or true means do not train on it.
_MASKED = frozenset(("masked", "mask_loss", "ignore_loss", "ignore", "skip"))
_LOSS_KEYS = _TRAINED | _MASKED
_HUMP = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")


def check_entry_keys(entry: Mapping[str, Any]) -> None:
    """Refuse an entry whose other keys request something that is not supported.

    Raises:
        SampleError: names the key, its value, its meaning in other programs and what to do.
    """
    if entry.keys() <= READ_KEYS:
        return
    for key, value in entry.items():
        if (name := _known(key)) and (meaning := _meaning(name, value, entry)) is not None:
            raise SampleError(_refusal(f"key {_shown(key)}", value, meaning))


def check_turn_keys(number: int, turn: Mapping[str, Any]) -> None:
    """As `check_entry_keys`, for turn `number`, which has more keys than 'from' and 'value'."""
    is_answer = str(turn["from"]).lower() == "gpt"
    for key, value in turn.items():
        name = _name(key)
        meaning = _TURN_MEANINGS.get(name)
        if meaning is not None and not _is_nothing(value):
            raise SampleError(_refusal(f"turn {number}: key {_shown(key)}", value, meaning))
        # questions are never trained on, so the key has no effect on a human turn
        if is_answer and name in _LOSS_KEYS and not _is_done_anyway(name, value):
            raise SampleError(_refusal(f"turn {number}: key {_shown(key)}", value, _LOSS))


def keys_not_read(entry: Any) -> Iterator[str]:
    """Each key of an entry and of its turns (as `conversations[].KEY`) that is not read, once."""
    if not isinstance(entry, dict):
        return
    yield from (key for key in entry if key not in READ_KEYS)
    turns = entry.get("conversations")
    of_turns = [turn for turn in turns if isinstance(turn, dict) and len(turn) > 2] if isinstance(turns, list) else []
    others = dict.fromkeys(key for turn in of_turns for key in turn if key not in READ_TURN_KEYS)
    yield from (f"conversations[].{key}" for key in others)


@lru_cache(maxsize=1024)
def _known(key: str) -> str:
    """The key's name in the tables above; empty if it is in none."""
    name = _name(key)
    is_known = any(name in keys for keys in (_MEANINGS, _IMAGE_KEYS, _FILE_KEYS, _LOSS_KEYS))
    return name if key not in READ_KEYS and is_known else ""


def _meaning(name: str, value: Any, entry: Mapping[str, Any]) -> tuple[str, str] | None:
    """What another program would do with the key; None if nothing, or if it is done anyway."""
    if name in _LOSS_KEYS:
        return None if _is_done_anyway(name, value) else _LOSS
    if _is_nothing(value):
        return None
    if name in _FILE_KEYS and not str(value).lower().endswith(_PICTURES):
        return None
    if name in _IMAGE_KEYS or name in _FILE_KEYS:  # next to an image it gives the source of the image
        return None if entry.get("image") or entry.get("images") else _IMAGE
    meaning = _MEANINGS.get(name)
    if meaning is _OTHER_TURNS and not entry.get("conversations"):  # `neighbour_layouts` names it
        return None
    return None if meaning is _SYSTEM and str(value).strip() == V1_SYSTEM else meaning


def _name(key: str) -> str:
    """One name for `imageUrl`, `image-url` and `IMAGE_URL`."""
    return _HUMP.sub("_", key).lower().replace("-", "_")


def _is_nothing(value: Any) -> bool:
    if isinstance(value, str):
        return not value.strip()
    return value is None or value is False or value in ([], {})


def _is_done_anyway(name: str, value: Any) -> bool:
    """Every answer is trained on with weight 1."""
    return value is None or (isinstance(value, bool | int | float) and value == (name in _TRAINED))


def _refusal(where: str, value: Any, meaning: tuple[str, str]) -> str:
    what, step = meaning
    # leave out texts and paths, so that equal reasons can be counted
    found = f" ({value})" if isinstance(value, bool | int | float) else ""
    return f"{where}{found} is not read; in other programs it {what}; {step}"


def _shown(value: Any) -> str:
    text = one_line(repr(value))
    return text if len(text) <= 60 else f"{text[:57]}..."
