"""The images of an entry: paths, or the bytes of images in the data file itself."""

import base64
import binascii
import hashlib
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any
from urllib.parse import unquote, urlsplit

from alignkd.vlm.data.entries.plain import filled
from alignkd.vlm.data.entries.reading import EntryReading
from alignkd.vlm.errors import SampleError, one_line

MAX_IMAGE_BYTES = 256 << 20
"""Maximum bytes of an image that is written in base64."""
# Shorter texts are paths: the shortest image is longer.
_SHORTEST_BASE64 = 64
_DATA_URL = re.compile(r"data:(?P<type>[\w.+-]+/[\w.+-]+)?(?:;[\w-]+=[^;,]*)*(?P<base64>;base64)?,", re.ASCII)
_BASE64 = re.compile(r"[A-Za-z0-9+/\s]+={0,2}\s*")
# First bytes of images -> the extension of their files.
_MAGIC = tuple(
    (re.compile(pattern, re.DOTALL), extension)
    for pattern, extension in (
        (rb"\xff\xd8\xff", "jpg"),
        (rb"\x89PNG\r\n\x1a\n", "png"),
        (rb"GIF8[79]a", "gif"),
        (rb"RIFF.{4}WEBP", "webp"),
        (rb"BM.{4}\0{4}", "bmp"),
        (rb"II\*\0|MM\0\*", "tif"),
        (rb"P[1-6]\s", "ppm"),
        (rb"\0\0\0\x0cjP  |\xff\x4f\xff\x51", "jp2"),
        (rb".{4}ftypavi[fs]", "avif"),
        (rb"\0\0\x01\0", "ico"),
    )
)
_EXPECTED = "expected a path, the bytes of an image, or a list of them"


@dataclass(frozen=True)
class EntryImage:
    """An image of an entry.

    Attributes:
        name: as in `Sample.images`.
        content: bytes of the image file, where the data file has them.
    """

    name: str
    content: bytes | None = None


def images_of(entry: Mapping[str, Any], reading: EntryReading) -> tuple[EntryImage, ...]:
    """The images under `image` and `images`: one or a list of them; both keys mean the same.

    Raises:
        SampleError: as `image_of`, or the keys differ.
    """
    one, other = (_listed(key, entry.get(key), reading) for key in ("image", "images"))
    if one and other and one != other:
        raise SampleError(f"'image' is {_names(one)}, 'images' is {_names(other)}; keep one of the two")
    return one or other


def image_of(where: str, value: Any, reading: EntryReading) -> EntryImage:
    """An image in any form: a path, `file://`, `data:` or base64 text, bytes, or `{"bytes", "path"}`.

    Args:
        where: the place in the entry, for messages.

    Raises:
        SampleError: no such form, a path outside the image folder, or broken base64.
    """
    if isinstance(value, dict):
        value = filled(value)
        if "bytes" in value and set(value) <= {"bytes", "path"}:
            return _of_struct(where, value["bytes"], value.get("path"))
        value = value["path"] if set(value) == {"path"} else value
    if isinstance(value, bytes):
        return EntryImage(_hash_name("image", value), value)
    if not isinstance(value, str) or not value:
        raise SampleError(f"{where} is {_shown(value)}, {_EXPECTED}")
    if (content := _picture_in(where, value)) is not None:
        return EntryImage(_hash_name("base64", content), content)
    if not _can_be_a_name(value):
        raise SampleError(f"{where} is {_shown(value)}, which cannot be a file name; correct the path")
    return EntryImage(_relative(where, value, reading.images))


def extension_of(content: bytes) -> str:
    """The extension of an image's format by its first bytes; empty if it is none that is known."""
    return next((extension for pattern, extension in _MAGIC if pattern.match(content)), "")


def _listed(key: str, value: Any, reading: EntryReading) -> tuple[EntryImage, ...]:
    values = value if isinstance(value, list) else [] if value is None else [value]
    # a null image in a Parquet column, or a list of nothing else
    if values and all(item is None or (isinstance(item, dict) and not filled(item)) for item in values):
        return ()
    return tuple(image_of(repr(key), item, reading) for item in values)


def _of_struct(where: str, content: Any, path: Any) -> EntryImage:
    if isinstance(content, str):
        content = _picture_in(where, content) or _decoded(where, content)
        prefix = "base64"
    else:
        prefix = "image"
    if not isinstance(content, bytes):
        raise SampleError(f"{where} has bytes that are {_shown(content)}, {_EXPECTED}")
    is_named = isinstance(path, str) and bool(path) and _can_be_a_name(path)
    return EntryImage(path if is_named else _hash_name(prefix, content), content)


def _picture_in(where: str, text: str) -> bytes | None:
    """The image that a text holds as `data:` URL or as base64; None if it is a path."""
    if (found := _DATA_URL.match(text)) is not None:
        kind = found["type"] or "text/plain"
        if not found["base64"] or not (kind.startswith("image/") or kind == "application/octet-stream"):
            raise SampleError(f"{where} is a data: URL of {kind}, expected an image in base64; remove the sample")
        return _decoded(where, text[found.end() :])
    if len(text) < _SHORTEST_BASE64 or not extension_of(_head(text)) or _BASE64.fullmatch(text) is None:
        return None
    return _decoded(where, text)


def _head(text: str) -> bytes:
    """The first bytes of a text as base64; none if it is not base64."""
    try:
        return base64.b64decode("".join(text[:64].split())[:32], validate=True)
    except ValueError:
        return b""


def _decoded(where: str, text: str) -> bytes:
    text = "".join(text.split())
    if len(text) // 4 * 3 > MAX_IMAGE_BYTES:
        raise SampleError(
            f"{where} is an image of {len(text) // 4 * 3} bytes in base64, more than {MAX_IMAGE_BYTES}; write it to "
            "a file"
        )
    try:
        content = base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
    except (binascii.Error, ValueError) as error:
        raise SampleError(f"{where} is broken base64 ({error}); encode the image again") from error
    if not content:
        raise SampleError(f"{where} is an image without bytes; encode the image again")
    return content


def _relative(where: str, path: str, folder: Path | None) -> str:
    """A path relative to the image folder; one that is relative, or an address of another kind, as it is."""
    found = path
    if path.startswith("file:"):
        url = urlsplit(path)
        if url.netloc in ("", "localhost"):
            found = unquote(url.path)
    if folder is None or not PurePath(found).is_absolute():
        return path
    # without following links: a folder of images often holds links to the places of its data sets
    root, file = os.path.abspath(folder), os.path.normpath("/" + found.lstrip("/"))  # noqa: PTH100
    if os.path.commonpath((root, file)) != root or file == root:
        raise SampleError(
            f"{where} is {_shown(path)}, outside the image folder {root}; set data.images to a folder that holds it, "
            "or use a relative path"
        )
    return os.path.relpath(file, root)


def _can_be_a_name(path: str) -> bool:
    try:
        path.encode()
    except UnicodeEncodeError:
        return False
    return "\0" not in path


def _hash_name(prefix: str, content: bytes) -> str:
    """A name that is the same whenever the image is."""
    return f"{prefix}-{hashlib.sha256(content).hexdigest()[:12]}.{extension_of(content) or 'bin'}"


def _names(images: tuple[EntryImage, ...]) -> str:
    return one_line(", ".join(repr(image.name) for image in images))[:60]


def _shown(value: Any) -> str:
    return one_line(repr(value)[:200])[:60]
