"""The content of a turn: a text, or parts of texts and images as chat templates take them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from alignkd.vlm.data.entries.plain import filled, is_nothing
from alignkd.vlm.data.turn_checks import IMAGE_PLACEHOLDER
from alignkd.vlm.errors import SampleError, one_line

_TEXT_TYPES = frozenset(("text", "input_text", "output_text"))
_IMAGE_TYPES = frozenset(("image", "image_url", "input_image", "image_path"))
# Where an image part has its image.
_PAYLOADS = ("image", "image_url", "image_path", "path", "url", "source", "bytes", "base64", "data")
_BASE64 = ("base64", "data")
# The same in an object of its own: `{"image_url": {"url": ...}}`, `{"source": {"data": ...}}`.
_INNER = ("url", "data", "path")
# Where an image part says which of the entry's images it shows.
_INDEX = "index"
# Other keys that leave open which image it is; `data stats` counts them.
_SIZES = ("min_pixels", "max_pixels", "resized_height", "resized_width")
_DETAILS = frozenset(("type", "text", "id", "detail", "media_type", "cache_control", *_SIZES))
# Keys of a text part that another program may take for more than a text.
_MEDIA = ("image", "image_url", "image_path", "video", "video_url", "audio", "audio_url", "input_audio")
# Keys that are counted as read.
READ_PART_KEYS = frozenset((*_PAYLOADS, _INDEX, "type", "text", "media_type"))


@dataclass(frozen=True)
class Mark:
    """A place in the text for an image.

    Attributes:
        value: the image, in a form of `entries/images.py`; None: one of the entry's images.
        index: which of them; None: the next one.
    """

    value: Any = None
    index: int | None = None


NEXT = Mark()


def content_of(number: int, content: Any) -> tuple[str, list[Mark]]:
    """The text of turn `number`, with `<image>` where an image is, and its images in order.

    A line break separates an image part from what is beside it, where there is no white space.

    Raises:
        SampleError: no text and no parts, or a part that is neither text nor image.
    """
    if isinstance(content, str):
        return content, [NEXT] * content.count(IMAGE_PLACEHOLDER)
    if not isinstance(content, list | dict) or not content:
        raise SampleError(f"turn {number} has no text: its content is {_shown(content)}; give a text, or parts")
    pieces = [_piece(number, part) for part in (content if isinstance(content, list) else [content])]
    marks: list[Mark] = []
    for piece in pieces:
        marks += [piece] if isinstance(piece, Mark) else [NEXT] * piece.count(IMAGE_PLACEHOLDER)
    return _joined(pieces), marks


def part_keys(content: Any) -> list[str]:
    """Keys of the parts of a content that are not read."""
    parts = content if isinstance(content, list) else [content]
    return [key for part in parts if isinstance(part, dict) for key in filled(part) if key not in READ_PART_KEYS]


def _piece(number: int, part: Any) -> str | Mark:
    if isinstance(part, str):
        return part
    if not isinstance(part, dict):
        raise SampleError(f"turn {number} has a part that is {_shown(part)}, expected a text or an object")
    part = filled(part)
    kind = part.get("type") or _kind_of(part)
    if kind in _TEXT_TYPES and isinstance(part.get("text"), str):
        if (media := next((key for key in _MEDIA if not _is_null(part.get(key))), None)) is not None:
            raise SampleError(f"turn {number} has a text part with {media!r}; write both as parts of their own")
        return str(part["text"])
    if kind in _IMAGE_TYPES:
        return _image(number, part)
    raise SampleError(
        f"turn {number} has a part of type {_shown(kind)}, expected text or image; remove the sample, or the part"
    )


def _kind_of(part: Mapping[str, Any]) -> str:
    """The type of a part without one, by its only other key."""
    return next((kind for kind in ("image", "image_url", "text") if kind in part), "") or ", ".join(part)


def _image(number: int, part: Mapping[str, Any]) -> Mark:
    found = {key: value for key, value in part.items() if key in _PAYLOADS and not _is_null(value)}
    if not is_nothing(part.get("text")):
        raise SampleError(f"turn {number} has an image part with a text; write the text as a part of its own")
    if len(found) > 1 and set(found) != {"bytes", "path"}:
        raise SampleError(f"turn {number} has an image part with {' and '.join(map(repr, found))}; keep one of them")
    if "bytes" in found:
        return Mark(found)
    for key, value in found.items():
        if isinstance(value, dict) and "bytes" not in value:
            key, value = next(
                ((name, inner) for name in _INNER if (inner := value.get(name)) is not None), (key, value)
            )
        return Mark({"bytes": value} if key in _BASE64 and isinstance(value, str) else value)
    if others := [key for key, value in part.items() if key not in (*_DETAILS, _INDEX) and not _is_null(value)]:
        raise SampleError(
            f"turn {number} has an image part with {_shown(others[0])}, which names no image that can be read; "
            "give its path under 'image'"
        )
    index = part.get(_INDEX)
    if index is not None and (isinstance(index, bool) or not isinstance(index, int) or index < 0):
        raise SampleError(f"turn {number} has an image part with index {_shown(index)}, expected 0 or more")
    return Mark(index=index)


def _is_null(value: Any) -> bool:
    """Whether a value requests nothing, also an image without bytes and path."""
    return is_nothing(value) or (isinstance(value, dict) and not filled(value))


def _joined(pieces: Sequence[str | Mark]) -> str:
    text = ""
    after_mark = False
    for piece in pieces:
        is_mark = isinstance(piece, Mark)
        added = IMAGE_PLACEHOLDER if isinstance(piece, Mark) else piece
        if text and added and (is_mark or after_mark) and not (text[-1].isspace() or added[0].isspace()):
            text += "\n"
        text += added
        after_mark = is_mark if added else after_mark
    return text


def _shown(value: Any) -> str:
    return one_line(repr(value))[:60]
