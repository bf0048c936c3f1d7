"""What a dump needs of an engine for clusters: workers that it places, and answers to calls of their methods."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

Method = Literal["host", "open", "write", "stop", "finish", "report"]


@dataclass(frozen=True, kw_only=True)
class Lost:
    """The answer of a worker that no longer exists.

    Attributes:
        cause: what happened, as the end of a sentence that names the worker.
        is_of_node: whether its machine is gone, which is no fault of the shard that it was writing.
    """

    cause: str
    is_of_node: bool = False


@dataclass(frozen=True, kw_only=True)
class Answer:
    """The answer to one call.

    Attributes:
        worker: number of the worker.
        argument: of the call: the shard of `write`, otherwise None.
        value: what the method of `Member` returned, or `Lost`.
    """

    worker: int
    method: Method
    argument: int | None
    value: Any


class Fleet(Protocol):
    """The workers, each a `Member` in a process of its own."""

    def start(self, worker: int) -> None:
        """Request a new worker; the engine places it when a machine has room. `host` is its first call."""

    def call(self, worker: int, method: Method, argument: int | None = None) -> None:
        """Call a method; calls to one worker run side by side."""

    def answers(self, seconds: float) -> Sequence[Answer]:
        """The answers that have arrived; waits at most `seconds` for the first."""

    def kill(self, worker: int) -> None:
        """End a worker at once; it gives no more answers."""

    def needs(self) -> str:
        """What a worker needs of a machine, for messages."""
