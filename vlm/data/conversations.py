"""LLaVA-style data: a JSON list (or JSON lines) of conversations, each with no, one or several images."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from alignkd.disk.opening import read_regular
from alignkd.vlm.data.entry_keys import check_entry_keys, check_turn_keys
from alignkd.vlm.data.json.index import beyond_limits
from alignkd.vlm.data.json.stream import JsonEntries
from alignkd.vlm.data.json.window import WINDOW_BYTES
from alignkd.vlm.data.known_formats import HEAD_BYTES, known_format
from alignkd.vlm.data.media_marks import check_marks
from alignkd.vlm.data.neighbour_layouts import no_conversation, no_turn
from alignkd.vlm.data.sample import Sample
from alignkd.vlm.data.source import Piece, ReadProgress
from alignkd.vlm.data.turns import Turn
from alignkd.vlm.errors import InputError, SampleError, one_line, unreadable


class ConversationFile:
    """The samples of a LLaVA-style JSON list or JSON-lines file, each read from the file when requested.

    Only 16 bytes per sample stay in memory. Copies may be pickled to other processes.
    Malformed entries are samples with a `problem`.

    Args:
        path: a JSON list; with the suffix `.jsonl` or `.ndjson` one JSON object per line. It must not change.
        images: folder to which image paths are relative.
        progress: called with the bytes read and the total bytes during the first pass, which checks the file.
        window: bytes read at once in that pass.

    Raises:
        InputError: the file is missing, or not a JSON list or JSON lines; later, that it has changed.
    """

    holds_images = False
    is_sequential = False

    def __init__(
        self,
        path: Path,
        images: Path | None = None,
        *,
        progress: ReadProgress | None = None,
        window: int = WINDOW_BYTES,
    ) -> None:
        self.path, self._images = path, images
        self._entries = JsonEntries(path, window=window, progress=progress)

    @property
    def sha256(self) -> str:
        """sha256 of the file's bytes, from the same pass; 64 hex digits."""
        return self._entries.sha256

    @property
    def pieces(self) -> tuple[Piece, ...]:
        """The file, identified by its bytes up to the end of the last entry; see `DataSource.pieces`."""
        return (Piece(name=self.path.name, num_samples=len(self), sha256=self._entries.sha256_of_first(len(self))),)

    def starts_with(self, piece: Piece, start: int) -> bool:
        """Whether the file begins with these samples; see `DataSource.starts_with`."""
        return (
            start == 0 and piece.num_samples <= len(self) and self._entries.begins_with(piece.num_samples, piece.sha256)
        )

    def __len__(self) -> int:
        return len(self._entries)

    def __getitem__(self, index: int) -> Sample:
        return replace(sample_of_entry(range(len(self))[index], self._entries[index]), folder=self._images)

    def __iter__(self) -> Iterator[Sample]:
        return (self[index] for index in range(len(self)))

    def entry(self, index: int) -> Any:
        """The JSON value of sample `index`."""
        return self._entries[index]


def load_samples(path: Path) -> list[Sample]:
    """All samples of a small file at once; see `ConversationFile`."""
    return list(ConversationFile(path))


def read_json(path: Path) -> Any:
    """The JSON value in `path`.

    Raises:
        InputError: unreadable, or not JSON; names line and column.
    """
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
    return f"broken JSON at line {error.lineno}, column {error.colno} ({error.msg}); repair or re-export the file"


def sample_of_entry(index: int, entry: Any) -> Sample:
    """The sample of entry `index` of a file."""
    if not isinstance(entry, dict):
        return Sample(index=index, id=f"#{index}", images=(), turns=(), problem="the entry is not a JSON object")
    sample_id = _printable(str(entry.get("id", f"#{index}")))
    images: tuple[str, ...] = ()
    try:
        images = _images_of(entry)
        check_entry_keys(entry)
        turns = _turns(entry)
        if not images:
            check_marks(turns)
    except SampleError as error:
        return Sample(index=index, id=sample_id, images=images, turns=(), problem=str(error))
    return Sample(index=index, id=sample_id, images=images, turns=turns)


def _images_of(entry: dict[str, Any]) -> tuple[str, ...]:
    """`"image"` is a path, or a list of paths as in LLaVA's multi-image data; `"images"` means the same."""
    one, other = (_paths(key, entry.get(key)) for key in ("image", "images"))
    if one and other and one != other:
        raise SampleError(f"'image' is {_listed(one)}, 'images' is {_listed(other)}; keep one of the two")
    return one or other


def _listed(paths: Sequence[str]) -> str:
    return one_line(", ".join(map(repr, paths)))[:60]


def _paths(key: str, value: Any) -> tuple[str, ...]:
    paths = value if isinstance(value, list) else [] if value is None else [value]
    for path in paths:
        if not isinstance(path, str) or not path:
            raise SampleError(f"{key!r} is {one_line(repr(value))[:60]}, expected a relative path or a list of them")
        if "\0" in path or _printable(path) != path:
            raise SampleError(f"{key!r} is {one_line(repr(path))[:60]}, which cannot be a file name; correct the path")
    return tuple(paths)


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
            raise SampleError(f"turn {number} holds half a surrogate pair (\\ud800 to \\udfff alone); correct the text")
        turns.append(Turn(str(turn["from"]).lower(), turn["value"]))
    return tuple(turns)


def _printable(text: str) -> str:
    """`text` with lone surrogates escaped: JSON allows them, but UTF-8 and therefore tokenizers do not."""
    return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode("utf-8")
