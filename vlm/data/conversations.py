"""LLaVA-style data: a JSON list (or JSON lines) of conversations, each with no, one or several images."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any, BinaryIO, TypeVar

from alignkd.disk.opening import open_regular, read_regular
from alignkd.vlm.data.entry_keys import check_entry_keys, check_turn_keys
from alignkd.vlm.data.json.index import beyond_limits
from alignkd.vlm.data.json.stream import JsonEntries, ReadProgress
from alignkd.vlm.data.json.window import WINDOW_BYTES
from alignkd.vlm.data.known_formats import HEAD_BYTES, known_format
from alignkd.vlm.data.media_marks import check_marks
from alignkd.vlm.data.missing_images import LONGEST_PATH, address_problem, advice
from alignkd.vlm.data.neighbour_layouts import no_conversation, no_turn
from alignkd.vlm.errors import InputError, SampleError, one_line, unreadable
from alignkd.vlm.inputs.templates import TemplateName, Turn, template_fingerprint
from alignkd.vlm.patience import patient

# One image as it is, several as a tuple of two or more.
ImagePaths = str | tuple[str, ...] | None
ImageFiles = bytes | tuple[bytes, ...] | None
Item = TypeVar("Item", str, bytes)


class MissingImageError(SampleError):
    """A sample's image file is not there, or cannot be read."""


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One entry of the data set.

    Attributes:
        index: position in the file, from 0: the sample's identity within the data set.
        id: the user's id; NOT unique across merged data sets.
        image: path relative to the image folder, a tuple of the paths of several images in the order of their
            `<image>`, or None for a text-only sample (or where a `problem` hides it).
        turns: the conversation.
        problem: why the entry is unusable, or None.
    """

    index: int
    id: str
    image: ImagePaths
    turns: tuple[Turn, ...]
    problem: str | None = None

    @property
    def images(self) -> tuple[str, ...]:
        """The paths of all its images."""
        return every_one(self.image)

    def conversations(self) -> list[dict[str, str]]:
        """The conversation as the data set writes it."""
        return [{"from": turn.speaker, "value": turn.value} for turn in self.turns]


class ConversationFile:
    """The samples of a LLaVA-style JSON list or JSON-lines file, read from the file one by one when asked for.

    What stays in memory is 16 bytes per sample, whatever the file's size. Copies may be pickled to other processes.
    Malformed entries are samples with a `problem`.

    Args:
        path: a JSON list; with the suffix `.jsonl` or `.ndjson` one JSON object per line. It must not change.
        progress: called with bytes read and bytes in all while the file is read through and checked, once.
        window: bytes read at once in that pass.

    Raises:
        InputError: the file is missing, or no JSON list / JSON lines; later, that it has changed.
    """

    def __init__(self, path: Path, *, progress: ReadProgress | None = None, window: int = WINDOW_BYTES) -> None:
        self.path = path
        self._entries = JsonEntries(path, window=window, progress=progress)

    @property
    def sha256(self) -> str:
        """Of the file's bytes, from the same pass; 64 hex digits."""
        return self._entries.sha256

    def __len__(self) -> int:
        return len(self._entries)

    def __getitem__(self, index: int) -> Sample:
        return sample_of_entry(range(len(self))[index], self._entries[index])

    def __iter__(self) -> Iterator[Sample]:
        return (self[index] for index in range(len(self)))

    def entry(self, index: int) -> Any:
        """The JSON value that sample `index` was made of."""
        return self._entries[index]


def load_samples(path: Path) -> list[Sample]:
    """All samples of a small file at once; `ConversationFile` says what is read and refused."""
    return list(ConversationFile(path))


def read_json(path: Path) -> Any:
    """The JSON value in `path`; InputError names line and column of what is broken."""
    try:
        data = read_regular(path)
    except OSError as error:
        raise unreadable(path, error) from error
    try:
        return json.loads(data)
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: {_why_no_json(data, error)}") from error
    except (RecursionError, ValueError) as error:
        raise InputError(f"{path}: cannot be read as JSON ({beyond_limits(error)}); re-export the file") from error


def _why_no_json(data: bytes, error: json.JSONDecodeError | UnicodeDecodeError) -> str:
    if (found := known_format(data[:HEAD_BYTES])) is not None:
        return f"{found.name}, expected JSON; {found.step}"
    if isinstance(error, UnicodeDecodeError):
        return f"not UTF-8 ({error.reason} at byte {error.start}); re-encode the file"
    return f"broken JSON at line {error.lineno}, column {error.colno} ({error.msg}); mend or re-export the file"


def sample_of_entry(index: int, entry: Any) -> Sample:
    """The sample that entry number `index` of a file describes."""
    if not isinstance(entry, dict):
        return Sample(index=index, id=f"#{index}", image=None, turns=(), problem="the entry is not a JSON object")
    sample_id = _printable(str(entry.get("id", f"#{index}")))
    image = None
    try:
        image = _image_of(entry)
        check_entry_keys(entry)
        turns = _turns(entry)
        if image is None:
            check_marks(turns)
    except SampleError as error:
        return Sample(index=index, id=sample_id, image=image, turns=(), problem=str(error))
    return Sample(index=index, id=sample_id, image=image, turns=turns)


def _image_of(entry: dict[str, Any]) -> ImagePaths:
    """`"image"` is a path, or a list of paths as in LLaVA's multi-image data; `"images"` means the same."""
    image = _image("image", entry.get("image"))
    if "images" not in entry:
        return image
    images = _image("images", entry["images"])
    if image is not None and images is not None and image != images:
        raise SampleError(
            f"'image' is {one_line(repr(image))[:60]}, 'images' is {one_line(repr(images))[:60]}; keep one of the two"
        )
    return image if images is None else images


def _image(key: str, value: Any) -> ImagePaths:
    paths = value if isinstance(value, list) else [] if value is None else [value]
    for path in paths:
        if not isinstance(path, str) or not path:
            raise SampleError(f"{key!r} is {one_line(repr(value))[:60]}, expected a relative path or a list of them")
        if "\0" in path or _printable(path) != path:
            raise SampleError(f"{key!r} is {one_line(repr(path))[:60]}, which no file can be called; mend the path")
    return one_or_tuple(paths)


def every_one(value: Item | tuple[Item, ...] | None) -> tuple[Item, ...]:
    """None, one thing or several, as a tuple."""
    if value is None:
        return ()
    return value if isinstance(value, tuple) else (value,)


def one_or_tuple(items: Sequence[Item]) -> Item | tuple[Item, ...] | None:
    """The inverse of `every_one`: a tuple only where there are two or more."""
    return tuple(items) if len(items) > 1 else items[0] if items else None


def _turns(entry: dict[str, Any]) -> tuple[Turn, ...]:
    value = entry.get("conversations")
    if not isinstance(value, list) or not value:
        raise SampleError(no_conversation(entry))
    turns = []
    for number, turn in enumerate(value):
        if not isinstance(turn, dict) or not isinstance(turn.get("value"), str) or "from" not in turn:
            raise SampleError(no_turn(number, turn))
        if len(turn) > 2:
            check_turn_keys(number, turn)
        if _printable(turn["value"]) != turn["value"]:
            raise SampleError(f"turn {number} holds half a surrogate pair (\\ud800 to \\udfff alone); mend the text")
        turns.append(Turn(str(turn["from"]).lower(), turn["value"]))
    return tuple(turns)


def _printable(text: str) -> str:
    """`text` with surrogates that stand alone escaped: JSON allows them, UTF-8 and so every tokenizer does not."""
    return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode("utf-8")


def open_image(images: Path, image: str) -> BinaryIO:
    """A sample's image file, open for reading.

    Links in the image folder are followed, wherever they lead: whoever owns the folder made them, and large image
    sets are commonly linked into place. What the data says may not leave the folder.

    Raises:
        MissingImageError: no such file, or one that cannot be opened.
        SampleError: a path that leaves the image folder, or no path but an address or an image's content.
    """
    if len(image) > LONGEST_PATH:
        raise SampleError(address_problem(image))
    path, named = images / image, PurePath(image)
    if named.is_absolute() or ".." in named.parts:
        raise SampleError(f"image path {image!r} leaves the image folder {images}; use a relative path inside it")
    try:
        return open_regular(path)
    except OSError as error:
        if problem := address_problem(image):
            raise SampleError(problem) from error
        step = (
            advice(images, image) if isinstance(error, FileNotFoundError | NotADirectoryError) else "restore the file"
        )
        raise MissingImageError(f"{path}: image cannot be read ({error.strerror}); {step}") from error


@patient
def read_image_bytes(images: Path, image: str) -> bytes:
    """The bytes of a sample's image file.

    Raises:
        SampleError: as `open_image`; MissingImageError also when reading fails.
        TransientReadError: the file system does not answer, for about a minute.
    """
    with open_image(images, image) as stream:
        try:
            return stream.read()
        except OSError as error:
            where = images / image
            raise MissingImageError(f"{where}: image cannot be read ({error.strerror}); restore the file") from error


def read_images(images: Path | None, image: ImagePaths) -> ImageFiles:
    """The bytes of a sample's image files, one as it is, several as a tuple in order.

    Args:
        images: the image folder; not None unless `image` is.

    Raises:
        SampleError: as `read_image_bytes`.
    """
    paths = every_one(image)
    assert images is not None or not paths
    return one_or_tuple([read_image_bytes(images, path) for path in paths if images is not None])


def image_hashes(files: ImageFiles) -> str | tuple[str, ...] | None:
    """sha256 (hex) of each image file."""
    return one_or_tuple([hashlib.sha256(file).hexdigest() for file in every_one(files)])


def sample_key(
    conversations: Sequence[dict[str, str]], image_sha256: str | tuple[str, ...] | None, template: TemplateName
) -> str:
    """Content hash (64 hex) of all that decides a sample's input: conversation, image bytes, template."""
    content = [list(conversations), image_sha256, template_fingerprint(template)]
    return hashlib.sha256(json.dumps(content, ensure_ascii=False, sort_keys=True).encode()).hexdigest()
