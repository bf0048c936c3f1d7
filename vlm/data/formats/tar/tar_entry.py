"""The members of a sample in a tar as one entry."""

import json
import re
from collections.abc import Callable, Sequence
from typing import Any

from alignkd.vlm.data.formats.entry_file import UnusableEntry
from alignkd.vlm.data.formats.paths import natural_key
from alignkd.vlm.data.formats.tar.tar_index import Member
from alignkd.vlm.errors import SampleError, one_line

_IMAGE = re.compile(r"(?:.*\.)?(?:jpg|jpeg|png|webp|gif|bmp)")
_VIDEO = re.compile(r"(?:.*\.)?(?:mp4|webm|avi|mov|mkv|h264)")
_AUDIO = re.compile(r"(?:.*\.)?(?:mp3|wav|flac|ogg|m4a)")
_IMAGE_KEYS = ("image", "images")


def is_image(suffix: str) -> bool:
    """Whether a suffix is that of an image: `jpg`, `0.png`, `image.webp`."""
    return _IMAGE.fullmatch(suffix) is not None


def entry_of(key: str, members: Sequence[Member], read: Callable[[Member], bytes]) -> Any:
    """The entry of a sample.

    The `json` member has the entry, or its list of turns. Without one, the `txt` member is a caption. Images that the
    entry names are put in the place of their names; if it names none, all of them come in the order of their suffixes.

    Returns:
        A dictionary; the value of the `json` member if it is not a conversation; an `UnusableEntry`.
    """
    if (problem := _problem_of(members)) != "":
        return UnusableEntry(key, problem)
    by_suffix = {member.suffix: member for member in members}
    try:
        entry, used = _text_of(by_suffix, read)
    except SampleError as error:
        return UnusableEntry(key, str(error))
    if not isinstance(entry, dict):
        return entry
    images = sorted((member for member in members if is_image(member.suffix)), key=lambda one: natural_key(one.suffix))
    entry = {"id": key, **entry}
    try:
        changed, shown = _with_images(entry, images, read)
    except SampleError as error:
        return UnusableEntry(str(entry["id"]), str(error))
    # images that the entry does not name are not read either
    others = [member for member in members if member.suffix not in used and member not in shown]
    return entry | changed | {_key_of(member.suffix): member.name for member in others}


def _problem_of(members: Sequence[Member]) -> str:
    for number, member in enumerate(members):
        if not member.is_file:
            return f"member {member.name!r} of the tar is a link, not a file; write the tar with tar --dereference"
        if any(other.suffix == member.suffix for other in members[:number]):
            return f"the tar has two members {member.name!r}; keep one, or give the samples different names"
    return ""


def _text_of(by_suffix: dict[str, Member], read: Callable[[Member], bytes]) -> tuple[Any, set[str]]:
    """The entry without images, and the suffixes that it was read from."""
    if (member := by_suffix.get("json")) is not None:
        value = _json(member, read(member))
        return ({"conversations": value} if isinstance(value, list) else value), {"json"}
    if (member := by_suffix.get("txt")) is not None:
        return {"caption": _decoded(member, read(member)).strip()}, {"txt"}
    return {}, set()


def _json(member: Member, data: bytes) -> Any:
    try:
        return json.loads(_decoded(member, data))
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        raise SampleError(f"member {member.name!r}: broken JSON at {where} ({error.msg}); correct it") from None
    except RecursionError:
        raise SampleError(f"member {member.name!r}: JSON that is nested too deeply; flatten it") from None


def _decoded(member: Member, data: bytes) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise SampleError(f"member {member.name!r}: not UTF-8 ({one_line(error)}); re-encode it") from None


def _with_images(
    entry: dict[str, Any], images: Sequence[Member], read: Callable[[Member], bytes]
) -> tuple[dict[str, Any], Sequence[Member]]:
    """The keys of the entry that change, because they hold images now, and the members that these are."""
    if not images:
        return {}, ()
    named = list(_names_in(entry))
    if not named:
        return {"images": [_image(member.name, read(member)) for member in images]}, images
    placed = _placed(named, images)
    changed = {key: _replaced(value, placed, read, at_image=key in _IMAGE_KEYS) for key, value in entry.items()}
    return changed, list(placed.values())


def _names_in(value: Any, *, at_image: bool = False) -> Any:
    """Every name of an image in an entry, in order, once."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _names_in(inner, at_image=key in _IMAGE_KEYS)
    elif isinstance(value, list):
        for inner in value:
            yield from _names_in(inner, at_image=at_image)
    elif at_image and isinstance(value, str):
        yield value


def _placed(named: Sequence[str], images: Sequence[Member]) -> dict[str, Member]:
    """Name in the entry -> member: by path, base name or suffix, or in order if none has a name of the entry."""
    names = list(dict.fromkeys(named))
    by_name = {
        name: member for member in images for name in (member.suffix, member.name.rpartition("/")[2], member.name)
    }
    found = {name: by_name[name] for name in names if name in by_name}
    if not found and len(names) == len(images):
        return dict(zip(names, images, strict=True))
    if len(found) < len(names):
        missing = next(name for name in names if name not in found)
        has = ", ".join(member.name for member in images[:4])
        raise SampleError(
            f"image {one_line(missing)[:60]!r} is not a member of the sample, which has {has}; correct the name"
        )
    return found


def _replaced(value: Any, placed: dict[str, Member], read: Callable[[Member], bytes], *, at_image: bool) -> Any:
    if isinstance(value, dict):
        return {key: _replaced(inner, placed, read, at_image=key in _IMAGE_KEYS) for key, inner in value.items()}
    if isinstance(value, list):
        return [_replaced(inner, placed, read, at_image=at_image) for inner in value]
    if at_image and isinstance(value, str):
        return _image(value, read(placed[value]))
    return value


def _image(name: str, data: bytes) -> dict[str, Any]:
    return {"bytes": data, "path": name}


def _key_of(suffix: str) -> str:
    """A key of the entry for a member that is not read; videos and recordings make the sample unusable."""
    if _VIDEO.fullmatch(suffix):
        return "video"
    return "audio" if _AUDIO.fullmatch(suffix) else f".{suffix}"
