"""The folder of an evaluation, and what it was made with: answers of two settings must not come together.

OUT/run.json             checkpoint, dtype and what makes the prompts
OUT/gqa/questions.json   the questions of a benchmark; with the answers, see `parts.py`
OUT/results.json         scores, see `results.py`
"""

import hashlib
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from alignkd.disk.opening import read_regular
from alignkd.disk.whole_file import write_whole
from alignkd.evaluation.benchmark import BENCHMARKS
from alignkd.evaluation.question import Question
from alignkd.pipeline.config.eval_place import RESULTS
from alignkd.pipeline.console.outputs import claim_folder
from alignkd.pipeline.evaluation.parts import PARTS
from alignkd.storage.errors import StoreError, disk_errors
from alignkd.storage.files.exclusive import Lock, remove
from alignkd.vlm.errors import InputError, one_line, unreadable

RUN, QUESTIONS, ANSWERS, SCORE = "run.json", "questions.json", "answers.jsonl", "score.json"
VERSION = 1
_LOCK = ".lock"
# keys that decide no answer
_INFORMATION = ("checkpoint",)
_PATIENCE_SECONDS = 60.0
_POLL_SECONDS = 0.05


class EvalOutput:
    """The folder OUT; `claim` before anything is written.

    Args:
        force: replace what was made with other settings.
    """

    def __init__(self, path: Path, *, force: bool = False) -> None:
        self.path, self._force = path, force

    def claim(self, reads: Sequence[Path]) -> None:
        """Refuse a folder that another program made.

        Raises:
            InputError: it is not empty and has no evaluation in it, or it is an input.
        """
        claim_folder("--out", self.path, self._is_ours, reads=reads, force=None)

    def begin(self, settings: Mapping[str, Any]) -> None:
        """Create the folder for these settings, or continue with it.

        Raises:
            InputError: it was made with other settings, and not `force`.
            StoreError: it cannot be written.
        """
        self._settle(self.path / RUN, _asked(settings), [*BENCHMARKS, RUN, RESULTS])

    def is_of(self, settings: Mapping[str, Any]) -> bool:
        """Whether the folder was made for these settings.

        Raises:
            InputError: its settings cannot be read.
        """
        found = read_object(self.path / RUN)
        return found is not None and _difference(found, _asked(settings)) is None

    def begin_benchmark(self, name: str, settings: Mapping[str, Any]) -> Path:
        """The same for the folder of a benchmark, which is returned; `settings` of `question_settings`."""
        folder = self.path / name
        self._settle(folder / QUESTIONS, settings, [f"{name}/{file}" for file in (PARTS, SCORE, ANSWERS, QUESTIONS)])
        return folder

    @contextmanager
    def locked(self) -> Iterator[None]:
        """A block that one process at a time is in.

        Raises:
            StoreError: another process is in it for long, or the folder cannot be written.
        """
        file, deadline = self.path / _LOCK, time.monotonic() + _PATIENCE_SECONDS
        with disk_errors(f"--out {self.path}"):
            self.path.mkdir(parents=True, exist_ok=True)
            file.touch()
        while (lock := Lock.take(file)) is None:
            if time.monotonic() > deadline:
                raise StoreError(f"{file}: is locked by another process for {_PATIENCE_SECONDS:.0f} s; end it")
            time.sleep(_POLL_SECONDS)
        try:
            yield
        finally:
            lock.release()

    def _settle(self, file: Path, settings: Mapping[str, Any], replaced: Sequence[str]) -> None:
        """Write the settings, or compare them with those of before.

        Args:
            replaced: names in OUT to remove before others are written.
        """
        asked = json.loads(json.dumps(settings))
        with self.locked():
            found = read_object(file)
            if found is not None and (difference := _difference(found, asked)) is None:
                return
            if found is not None and not self._force:
                raise InputError(f"{file}: {difference}; run with what it was made with, give another --out (key "
                                 "eval.out), or start again with `alignkd eval --force`")  # fmt: skip
            with disk_errors(f"--out {self.path}"):
                for name in replaced:
                    remove(self.path / name)
                write_whole(file, json.dumps(asked, indent=1) + "\n")

    @staticmethod
    def _is_ours(folder: Path) -> bool:
        """Whether an evaluation made the folder, perhaps another process that has just begun."""
        names = [entry.name for entry in folder.iterdir()]
        return is_begun(folder) or all(name == _LOCK or name.startswith(".part-") for name in names)


def is_begun(folder: Path) -> bool:
    """Whether an evaluation has begun in a folder. The output of a training run has a file of the same name."""
    try:
        return "model_id" in (read_object(folder / RUN) or {})
    except InputError:
        return False


def question_settings(questions: Sequence[Question], folder: Path, limit: int | None) -> dict[str, Any]:
    """What identifies the questions of a benchmark.

    Args:
        questions: those to ask.
        folder: the benchmark's folder; images are identified by their paths in it, those in the question file by
            their bytes.
        limit: their number if the benchmark has more; None for all.
    """
    digest = hashlib.sha256()
    for one in questions:
        image: object = one.image
        if isinstance(image, bytes):
            image = hashlib.sha256(image).hexdigest()
        elif isinstance(image, Path):
            image = str(image.relative_to(folder) if image.is_relative_to(folder) else image)
        values = [one.id, one.turn, one.prompt, image, one.pads_image, one.max_new_tokens, dict(one.fields)]
        digest.update(json.dumps(values).encode() + b"\n")
    return {"limit": limit, "questions": len(questions), "sha256": digest.hexdigest()}


def _asked(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Content of `run.json` for the settings of a run."""
    return {"version": VERSION, **settings}


def read_object(file: Path) -> dict[str, Any] | None:
    """The object in a file of an evaluation, None if there is no such file.

    Raises:
        InputError: it is not such a file.
    """
    try:
        found = json.loads(read_regular(file))
        if not isinstance(found, dict):
            raise ValueError(f"a JSON {type(found).__name__}")
    except FileNotFoundError:
        return None
    except OSError as error:
        raise unreadable(file, error) from error
    except (ValueError, RecursionError) as error:
        raise InputError(
            f"{file}: not written by `alignkd eval` ({one_line(error)[:80]}); give another --out"
        ) from error
    return found


def _difference(found: Mapping[str, Any], asked: Mapping[str, Any]) -> str | None:
    """The first setting that differs, with both values."""
    for key in dict.fromkeys((*asked, *found)):
        if key not in _INFORMATION and (before := found.get(key)) != (now := asked.get(key)):
            return f"{key} is {before!r:.80}, now {now!r:.80}"
    return None
