"""The answers to a block of questions in the order in which they came: a file of JSON lines that grows batch by batch.

A process that is killed leaves at most one incomplete line, which the next one cuts. Lines with `run` describe the
process that wrote the lines after them.
"""

import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from alignkd.disk.opening import read_regular
from alignkd.disk.whole_file import write_whole
from alignkd.storage.errors import disk_errors
from alignkd.vlm.errors import unreadable


class Answered(BaseModel):
    """One question that was asked.

    Attributes:
        position: number of the question in its benchmark, from 0.
        text: the answer as the answers file has it; empty for an unusable question.
        tokens: generated tokens, without the one that ends the answer.
        finished: whether the model ended the answer; False if the limit of tokens did.
        seconds: share of the question in the time of its batch.
        unusable: why the question could not be asked; None if it was.
    """

    model_config = ConfigDict(extra="forbid", strict=True)

    position: int
    text: str = ""
    tokens: int = 0
    finished: bool = True
    seconds: float = 0.0
    unusable: str | None = None


class Process(BaseModel):
    """What a process that wrote answers ran on.

    Attributes:
        device: name of the device.
        batch: largest number of prompts in a batch.
        versions: version by the name of the library.
    """

    model_config = ConfigDict(extra="forbid", strict=True)

    device: str
    batch: int
    versions: dict[str, str]


@dataclass(frozen=True, kw_only=True)
class JournalContent:
    """The complete lines of a journal.

    Attributes:
        answers: by position.
        processes: those that wrote answers.
        is_whole: whether nothing follows the complete lines.
    """

    answers: dict[int, Answered] = field(default_factory=dict)
    processes: list[Process] = field(default_factory=list)
    is_whole: bool = True

    def without_unusable(self) -> "JournalContent":
        """The same without the questions that could not be asked."""
        kept = {position: one for position, one in self.answers.items() if one.unusable is None}
        return JournalContent(answers=kept, processes=self.processes, is_whole=self.is_whole)


def read_journal(path: Path, positions: range) -> JournalContent:
    """The complete lines of a journal, up to the first that is not; nothing if there is no such file.

    Args:
        positions: those of the block; a line with another one is not complete.

    Raises:
        InputError: the file cannot be read.
    """
    try:
        data = read_regular(path)
    except FileNotFoundError:
        return JournalContent()
    except OSError as error:
        raise unreadable(path, error) from error
    answers: dict[int, Answered] = {}
    processes: list[Process] = []
    for line in data.splitlines(keepends=True):
        found = _parsed(line)
        if isinstance(found, Process):
            processes.append(found)
        elif found is not None and found.position in positions:
            answers[found.position] = found
        else:
            return JournalContent(answers=answers, processes=processes, is_whole=False)
    return JournalContent(answers=answers, processes=processes)


class Journal:
    """A journal open for appending; a context manager. Only one process may have it open.

    Opening it cuts what follows the complete lines, and drops questions that could not be asked: they are asked again.
    """

    def __init__(self, path: Path, positions: range, process: Process) -> None:
        """Raises StoreError if it cannot be written, InputError if it cannot be read."""
        self._path = path
        found = read_journal(path, positions)
        kept = found.without_unusable()
        with self._errors():
            if not found.is_whole or len(kept.answers) < len(found.answers):
                write_whole(path, _lines([*kept.processes, *kept.answers.values()]))
            self._descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o666)
        self._append([] if kept.processes[-1:] == [process] else [process])

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            with self._errors():
                os.fsync(self._descriptor)
        finally:
            os.close(self._descriptor)

    def add(self, answers: Iterable[Answered]) -> None:
        """Append answers; they are with the system when this returns, so that killing the process loses none.

        Raises:
            StoreError: they cannot be written.
        """
        self._append(list(answers))

    def _append(self, records: Sequence[BaseModel]) -> None:
        data = _lines(records)
        with self._errors():
            while data:  # a disk that becomes full takes a part before the error
                data = data[os.write(self._descriptor, data) :]

    def _errors(self) -> Any:
        return disk_errors(f"answers {self._path}")


def _lines(records: Iterable[BaseModel]) -> bytes:
    return b"".join(json.dumps(_values(record)).encode() + b"\n" for record in records)


def _values(record: BaseModel) -> dict[str, Any]:
    if isinstance(record, Process):
        return {"run": record.model_dump()}
    return record.model_dump(exclude_defaults=True)


def _parsed(line: bytes) -> Answered | Process | None:
    """A complete line, None for any other."""
    if not line.endswith(b"\n"):
        return None
    try:
        values = json.loads(line)
        if isinstance(values, dict) and "run" in values:
            return Process.model_validate(values["run"])
        return Answered.model_validate(values)
    except (ValueError, ValidationError, RecursionError):
        return None
