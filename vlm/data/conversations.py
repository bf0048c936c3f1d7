"""A JSON list (or JSON lines) of conversations, each with no, one or several images."""

import json
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

from alignkd.disk.opening import read_regular
from alignkd.vlm.data.entries.entry import sample_of_entry
from alignkd.vlm.data.entries.reading import EntryReading
from alignkd.vlm.data.json.index import beyond_limits
from alignkd.vlm.data.json.stream import JsonEntries
from alignkd.vlm.data.json.window import WINDOW_BYTES
from alignkd.vlm.data.known_formats import HEAD_BYTES, known_format
from alignkd.vlm.data.sample import Sample
from alignkd.vlm.data.source import Piece, ReadProgress
from alignkd.vlm.errors import InputError, unreadable

# Entries that are read to find out whether a file holds pictures.
_LOOKED_AT = 64


class ConversationFile:
    """The samples of a JSON list or JSON-lines file, each read from the file when requested.

    Only 16 bytes per sample stay in memory. Copies may be pickled to other processes.
    Malformed entries are samples with a `problem`.

    Args:
        path: a JSON list; with the suffix `.jsonl` or `.ndjson` one JSON object per line. It must not change.
        images: folder to which image paths are relative.
        reading: how entries are read, the image folder included; None: with nothing but `images`.
        progress: called with the bytes read and the total bytes during the first pass, which checks the file.
        window: bytes read at once in that pass.

    Raises:
        InputError: the file is missing, or not a JSON list or JSON lines; later, that it has changed.
    """

    is_sequential = False

    def __init__(
        self,
        path: Path,
        images: Path | None = None,
        *,
        reading: EntryReading | None = None,
        progress: ReadProgress | None = None,
        window: int = WINDOW_BYTES,
    ) -> None:
        self.path, self._reading = path, reading or EntryReading(images=images)
        self._entries = JsonEntries(path, window=window, progress=progress)

    @property
    def sha256(self) -> str:
        """sha256 of the file's bytes, from the same pass; 64 hex digits."""
        return self._entries.sha256

    @cached_property
    def holds_images(self) -> bool:
        """Whether one of some entries, which are spread over the file, has a picture in base64."""
        step = max(1, len(self) // _LOOKED_AT)
        return any(self[index].contents for index in range(0, len(self), step))

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
        return sample_of_entry(range(len(self))[index], self._entries[index], self._reading)

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
