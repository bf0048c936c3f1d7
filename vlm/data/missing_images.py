"""Possible reasons why an image file is missing, from its path and similar file names. Nothing is repaired."""

import os
import re
import unicodedata
from collections.abc import Iterator
from itertools import product
from pathlib import Path, PurePosixPath
from urllib.parse import unquote

from alignkd.vlm.errors import one_line

_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")
_DATA = re.compile(r"data:[\w/+.-]*[;,]")
# A longer path is taken for the content of an image.
LONGEST_PATH = 4096


def address_problem(image: str) -> str:
    """Why a value is not a path but an address or an image's content; empty if it may be a path."""
    if _DATA.match(image) or len(image) > LONGEST_PATH:
        return (
            f"{image[:30]}...: the content of an image ({len(image)} characters), expected a path; write it to a file"
        )
    if _ADDRESS.match(image):
        return f"{image}: an address, expected a path; download the image and name the file"
    return ""


def advice(images: Path, image: str) -> str:
    """What to do about an image that cannot be opened; names a file with a similar spelling if there is one.

    Only a few names are tried. Folders are not listed, because they may hold millions of files.
    """
    path = images / image
    if os.path.islink(path):  # noqa: PTH114 - raises no error for a name that is too long
        return f"restore the file that the link leads to ({one_line(os.readlink(path))})"  # noqa: PTH115
    for why, other in _spellings(image):
        if other != image and _is_inside(other) and os.path.exists(images / other):  # noqa: PTH110
            return f"{why} exists: write {_plain(other)} in the data, or rename the file"
    return "the path has backslashes, write it with /; restore the file" if "\\" in image else "restore the file"


def _spellings(image: str) -> Iterator[tuple[str, str]]:
    slashed = image.replace("\\", "/")
    yield "the path has backslashes; a file with / in their place", slashed
    for form in ("NFC", "NFD"):
        yield "a file whose name differs only in Unicode normalisation", unicodedata.normalize(form, slashed)
    yield "a file without the spaces", "/".join(part.strip() for part in slashed.split("/"))
    yield "a file whose name is this one with percent codes decoded", unquote(slashed)
    path = PurePosixPath(slashed)
    if not path.name:
        return
    for stem, suffix in product(_cases(path.stem), _cases(path.suffix)):
        yield "a file whose name differs only in upper and lower case", str(path.with_name(stem + suffix))
    yield "a file whose path differs only in upper and lower case", slashed.lower()
    for suffix in (".jpg", ".jpeg", ".png"):
        yield "a file with another extension", str(path.with_suffix(suffix))


def _is_inside(image: str) -> bool:
    path = PurePosixPath(image)
    return not path.is_absolute() and ".." not in path.parts


def _cases(text: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys((text, text.lower(), text.upper(), text.capitalize())))


def _plain(path: str) -> str:
    """Composed and decomposed letters look the same, so decomposed ones are shown by code."""
    return path if path.isascii() or unicodedata.is_normalized("NFC", path) else ascii(path)
