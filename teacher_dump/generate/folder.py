"""The folder of a teacher's answers: written shard by shard, by any number of workers.

    generation.json           teacher, settings and data that decide the answers
    answers/00000012.jsonl    the entries of a shard, in the order of the data
    shards/00000012.json      the report of a shard; a shard without a report does not count

A shard holds consecutive samples. Files are complete or absent.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from alignkd.disk.opening import read_regular
from alignkd.storage.errors import disk_errors
from alignkd.storage.files.exclusive import create_exclusively, remove_leftovers, replace_durably
from alignkd.vlm.data.formats.paths import ANSWERS_FOLDER, GENERATION_FILE
from alignkd.vlm.errors import InputError, one_line, unreadable

SHARDS = "shards"
VERSION = 1
# entries that identify nothing
_INFORMATION = ("created_with",)


class UnusableSample(BaseModel):
    """A sample without an entry, and why."""

    model_config = ConfigDict(extra="forbid", strict=True)

    index: int
    id: str
    reason: str


class ShardReport(BaseModel):
    """What a shard holds: counts as in `alignkd.teacher_dump.generate.job.GenerateResult`, and bytes of its answers."""

    model_config = ConfigDict(extra="forbid", strict=True)

    shard: int
    entries: int
    answers: int
    finished: int
    tokens: int
    logprob: float
    bytes: int
    unusable: list[UnusableSample]


class AnswerFolder:
    """A folder of answers, opened for writing or reading; an `Output` of workers.

    Attributes:
        path: the folder.
        generation: content of `generation.json`.
    """

    def __init__(self, path: Path, generation: Mapping[str, Any]) -> None:
        self.path, self.generation = path, generation
        self._num_samples: int = generation["num_samples"]
        self._shard_size: int = generation["shard_size"]
        self._entries_per_sample: int = generation["settings"]["samples_per_question"]

    @classmethod
    def open(cls, path: Path, generation: Mapping[str, Any]) -> "AnswerFolder":
        """Create the folder, or continue the one that exists.

        Raises:
            InputError: the folder was made with other settings; names the first difference.
            StoreError: it cannot be written.
        """
        with disk_errors(f"answers {path}"):
            for name in (ANSWERS_FOLDER, SHARDS):
                (path / name).mkdir(parents=True, exist_ok=True)
            file = path / GENERATION_FILE
            if not file.exists():
                content = json.dumps(generation, indent=1, ensure_ascii=False) + "\n"
                create_exclusively(file, content.encode(), path)
            remove_leftovers(path)
        found = read_generation(path)
        _check_equal(file, found, json.loads(json.dumps(generation)))
        return cls(path, found)

    @classmethod
    def read(cls, path: Path) -> "AnswerFolder":
        """The folder as another process writes it.

        Raises:
            InputError: it is not a folder of answers.
        """
        return cls(path, read_generation(path))

    @property
    def num_shards(self) -> int:
        """Shards of the plan."""
        return -(-self._num_samples // self._shard_size)

    def samples_of(self, shard: int) -> range:
        """Indices of the samples of a shard."""
        start = shard * self._shard_size
        return range(start, min(start + self._shard_size, self._num_samples))

    def planned_samples(self, shard: int) -> Sequence[tuple[int, int]]:
        """(index of the sample, number of its entry) of each planned entry of a shard."""
        return [(index, entry) for index in self.samples_of(shard) for entry in range(self._entries_per_sample)]

    def pending_shards(self) -> list[int]:
        """Shards without a report or without their answers, ascending."""
        return [shard for shard in range(self.num_shards) if self.is_pending(shard)]

    def is_pending(self, shard: int) -> bool:
        """Whether a shard is to be written."""
        report = self.report(shard)
        return report is None or (report.entries > 0 and not self._answers(shard).exists())

    def report(self, shard: int) -> ShardReport | None:
        """The report of a shard; None if it is not written yet.

        Raises:
            InputError: the report cannot be read.
        """
        file = self._report(shard)
        try:
            return ShardReport.model_validate_json(read_regular(file))
        except FileNotFoundError:
            return None
        except OSError as error:
            raise unreadable(file, error) from error
        except ValidationError as error:
            raise InputError(
                f"{file}: not the report of a shard ({one_line(error.errors()[0]['msg'])}); remove it and run again, "
                "which writes the shard anew"
            ) from error

    def reports(self) -> Iterator[ShardReport]:
        """The reports of all shards that are written.

        Raises:
            InputError: a report cannot be read.
        """
        for shard in range(self.num_shards):
            if not self.is_pending(shard) and (report := self.report(shard)) is not None:
                yield report

    def write(self, entries: Sequence[Mapping[str, Any]], report: ShardReport) -> ShardReport:
        """Write a shard; returns its report with the size of the file.

        Raises:
            StoreError: a file cannot be written.
        """
        data = "".join(json.dumps(entry, ensure_ascii=False) + "\n" for entry in entries).encode()
        report = report.model_copy(update={"bytes": len(data)})
        with disk_errors(f"answers {self.path}"):
            if entries:  # a data file without entries would be refused
                replace_durably(self._answers(report.shard), data, self.path)
            else:
                self._answers(report.shard).unlink(missing_ok=True)  # of before a retry
            replace_durably(self._report(report.shard), report.model_dump_json(indent=1).encode() + b"\n", self.path)
        return report

    def redo(self, shard: int) -> None:
        """Take a shard as not written; its answers stay until it is written again.

        Raises:
            StoreError: the report cannot be removed.
        """
        with disk_errors(f"answers {self.path}"):
            self._report(shard).unlink(missing_ok=True)

    def shared_folder(self, name: str) -> Path:
        """A folder for files that are not answers."""
        return self.path / name

    def _answers(self, shard: int) -> Path:
        return self.path / ANSWERS_FOLDER / f"{shard:08d}.jsonl"

    def _report(self, shard: int) -> Path:
        return self.path / SHARDS / f"{shard:08d}.json"


def read_generation(path: Path) -> dict[str, Any]:
    """Content of the `generation.json` in a folder.

    Raises:
        InputError: it is missing, or not such a file.
    """
    file = path / GENERATION_FILE
    try:
        found = json.loads(read_regular(file))
        version = found["version"]
        if version == VERSION:
            counts = (found["num_samples"], found["shard_size"], found["settings"]["samples_per_question"])
            if not all(type(count) is int and count > 0 for count in counts):
                raise ValueError(f"counts are {counts}, expected numbers above 0")
    except OSError as error:
        raise unreadable(file, error) from error
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{file}: not written by `alignkd generate` ({one_line(error)[:80]}); choose another folder"
        ) from error
    if version != VERSION:
        raise InputError(f"{file}: version is {version!r:.40}, this alignkd reads {VERSION}; update alignkd")
    return dict(found)


def _check_equal(file: Path, found: Mapping[str, Any], asked: Mapping[str, Any]) -> None:
    for key, before, now in _differences(found, asked):
        if key not in _INFORMATION:
            raise InputError(
                f"{file}: {key} is {before!r:.80}, now {now!r:.80}; run with what the folder was made with, or choose "
                "another generate.output"
            )


def _differences(found: Any, asked: Any, key: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Dotted key, value in the file, value now."""
    if isinstance(found, dict) and isinstance(asked, dict):
        for name in dict.fromkeys((*found, *asked)):
            if key or name not in _INFORMATION:
                yield from _differences(found.get(name), asked.get(name), f"{key}.{name}" if key else name)
    elif found != asked:
        yield key, found, asked
