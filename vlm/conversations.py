"""LLaVA-style data: a JSON list (or JSON lines) of conversations, each with at most one image."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlm.errors import InputError, SampleError, one_line
from vlm.templates import TemplateName, Turn, template_fingerprint


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One entry of the data set.

    Attributes:
        index: position in the file, from 0: the sample's identity within the data set.
        id: the user's id; NOT unique across merged data sets.
        image: path relative to the image folder, or None for a text-only sample.
        turns: the conversation.
        problem: why the entry is unusable, or None.
    """

    index: int
    id: str
    image: str | None
    turns: tuple[Turn, ...]
    problem: str | None = None

    def conversations(self) -> list[dict[str, str]]:
        """The conversation as the data set writes it."""
        return [{"from": turn.speaker, "value": turn.value} for turn in self.turns]


def load_samples(path: Path) -> list[Sample]:
    """Every entry of a LLaVA-style JSON list or JSON-lines file, malformed entries marked by `problem`.

    Raises:
        InputError: the file is missing, or no JSON list / JSON lines.
    """
    entries = read_json_lines(path) if path.suffix == ".jsonl" else read_json(path)
    if not isinstance(entries, list):
        raise InputError(f"{path}: a JSON {type(entries).__name__}, expected a list of conversations")
    return [_sample(index, entry) for index, entry in enumerate(entries)]


def read_json(path: Path) -> Any:
    """The JSON value in `path`; InputError names line and column of what is broken."""
    try:
        return json.loads(path.read_bytes())
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        raise InputError(f"{path}: broken JSON at {where} ({error.msg}); mend or re-export the file") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 ({error.reason} at byte {error.start}); re-encode the file") from error
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); check the path") from error


def read_json_lines(path: Path) -> list[Any]:
    """The JSON values of a `.jsonl` file, blank lines left out; InputError names the line of what is broken."""
    try:
        lines = path.read_text(encoding="utf-8").split("\n")  # not splitlines: a string may hold U+2028
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 ({error.reason} at byte {error.start}); re-encode the file") from error
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); check the path") from error
    return [_json_line(path, number, line) for number, line in enumerate(lines, start=1) if line.strip()]


def _json_line(path: Path, number: int, line: str) -> Any:
    try:
        return json.loads(line)
    except json.JSONDecodeError as error:
        raise InputError(f"{path}: broken JSON at line {number} ({error.msg}); mend or re-export the file") from error


def _sample(index: int, entry: Any) -> Sample:
    if not isinstance(entry, dict):
        return Sample(index=index, id=f"#{index}", image=None, turns=(), problem="the entry is not a JSON object")
    sample_id = str(entry.get("id", f"#{index}"))
    image = entry.get("image")
    try:
        turns = _turns(entry.get("conversations"))
        if image is not None and (not isinstance(image, str) or not image):
            raise SampleError(f"'image' is {one_line(repr(image))[:60]}, expected one relative path")
    except SampleError as error:
        return Sample(index=index, id=sample_id, image=None, turns=(), problem=str(error))
    return Sample(index=index, id=sample_id, image=image, turns=turns)


def _turns(value: Any) -> tuple[Turn, ...]:
    if not isinstance(value, list) or not value:
        raise SampleError("empty conversation; give at least one human and one gpt turn")
    turns = []
    for number, turn in enumerate(value):
        if not isinstance(turn, dict) or not isinstance(turn.get("value"), str) or "from" not in turn:
            raise SampleError(f"turn {number} is not an object with the texts 'from' and 'value'")
        turns.append(Turn(str(turn["from"]).lower(), turn["value"]))
    return tuple(turns)


def read_image_bytes(images: Path, image: str) -> bytes:
    """The bytes of a sample's image file.

    Raises:
        SampleError: no such file, or a path that leaves the image folder.
    """
    path = images / image
    if not path.resolve().is_relative_to(images.resolve()):
        raise SampleError(f"image path {image!r} leaves the image folder {images}; use a relative path inside it")
    try:
        return path.read_bytes()
    except OSError as error:
        raise SampleError(f"{path}: image cannot be read ({error.strerror}); restore the file") from error


def sample_key(conversations: Sequence[dict[str, str]], image_sha256: str | None, template: TemplateName) -> str:
    """Content hash (64 hex) of all that decides a sample's input: conversation, image bytes, template."""
    content = [list(conversations), image_sha256, template_fingerprint(template)]
    return hashlib.sha256(json.dumps(content, ensure_ascii=False, sort_keys=True).encode()).hexdigest()
