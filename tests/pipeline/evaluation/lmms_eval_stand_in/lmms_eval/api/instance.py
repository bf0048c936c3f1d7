"""Requests."""

from dataclasses import dataclass, field
from typing import Any


@dataclass
class Instance:
    """One request; the real one has the fields of results too."""

    request_type: str
    arguments: tuple[Any, ...]
    idx: int
    metadata: dict[str, Any] = field(default_factory=dict)

    @property
    def args(self) -> tuple[Any, ...]:
        return self.arguments
