"""Requests and answers of the pages, independent of the web framework."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, is_dataclass
from typing import Any

import numpy as np

from alignkd.disk.errors import AlignkdError


class BadRequestError(AlignkdError):
    """A parameter of a URL with an invalid value."""


class NotThereError(AlignkdError):
    """A URL names something that the store does not have."""


@dataclass(frozen=True)
class Asked:
    """The parts of a URL.

    Attributes:
        path: parameters in the path, by name.
        query: parameters in the query, by name; a name may be given several times.
    """

    path: Mapping[str, Any] = field(default_factory=dict)
    query: Mapping[str, Sequence[str]] = field(default_factory=dict)

    def text(self, name: str, default: str = "") -> str:
        """The last value of a parameter of the query."""
        values = self.query.get(name)
        return values[-1] if values else default

    def number(self, name: str, default: int, *, least: int = 0, most: int | None = None) -> int:
        """A whole number of the query, at least `least`, cut to `most`.

        Raises:
            BadRequestError: the value is not such a number.
        """
        found = self.number_or_none(name, least=least)
        return default if found is None else found if most is None else min(found, most)

    def number_or_none(self, name: str, *, least: int = 0) -> int | None:
        """A whole number of the query, at least `least`; None if it is not given or is empty.

        Raises:
            BadRequestError: the value is not such a number.
        """
        text = self.text(name)
        if not text:
            return None
        # 18 digits fit an index of a database
        if not text.isascii() or not text.isdigit() or len(text) > 18 or int(text) < least:
            raise BadRequestError(f"{name} is {text[:40]!r}, expected a whole number from {least}")
        return int(text)


@dataclass(frozen=True)
class Answer:
    """The body of an answer."""

    body: bytes
    media_type: str
    status: int = 200


def json_answer(value: Any, status: int = 200) -> Answer:
    """`value` as JSON; see `plain`."""
    text = json.dumps(plain(value), allow_nan=False, ensure_ascii=False, separators=(",", ":"))
    # a lone half of a surrogate pair, which JSON data may hold, has no UTF-8
    return Answer(text.encode("utf-8", "replace"), "application/json", status)


def error_answer(line: str, status: int) -> Answer:
    """One line that the page shows in place of what was asked for."""
    return json_answer({"error": " ".join(line.split())}, status)


def plain(value: Any) -> Any:
    """`value` of JSON's own types: dataclasses become objects, arrays lists, NaN and infinities null."""
    if isinstance(value, float | np.floating):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(name): plain(entry) for name, entry in value.items()}
    if isinstance(value, np.ndarray):
        return plain(value.tolist())
    if isinstance(value, list | tuple):
        return [plain(entry) for entry in value]
    if isinstance(value, np.generic):
        return value.item()
    if is_dataclass(value) and not isinstance(value, type):
        return plain(asdict(value))
    return value
