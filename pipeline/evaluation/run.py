"""One process of an evaluation: benchmark after benchmark, questions that no other process asks, then the scores."""

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from alignkd.evaluation.benchmark import BENCHMARKS
from alignkd.evaluation.errors import AnswersError
from alignkd.evaluation.folder import benchmark_folder
from alignkd.evaluation.question import Question
from alignkd.pipeline.console.printing import say
from alignkd.pipeline.evaluation.answering import Answering
from alignkd.pipeline.evaluation.journal import Process
from alignkd.pipeline.evaluation.output import EvalOutput, question_settings
from alignkd.pipeline.evaluation.parts import PARTS, AnswerParts
from alignkd.pipeline.evaluation.prompts import NOT_THE_PAPERS, preparation_for
from alignkd.pipeline.evaluation.results import AskedBenchmark, unanswered, write_results
from alignkd.pipeline.evaluation.settings import EvalSettings, model_name
from alignkd.pipeline.evaluation.table import published_rows
from alignkd.pipeline.runs.teacher.worker import device_of_worker, run_as_worker
from alignkd.storage.errors import disk_errors
from alignkd.teacher_dump.operation.workers import launched_rank
from alignkd.vlm.errors import InputError
from alignkd.vlm.families.family import Checkpoint, VisionLanguageModel
from alignkd.vlm.families.open import open_checkpoint
from alignkd.vlm.hardware.device_report import device_report
from alignkd.vlm.hardware.devices import TORCH_DTYPES, usable_device
from alignkd.vlm.hardware.memory_faults import memory_errors

_POLL_SECONDS = 0.2
LIBRARIES = ("alignkd", "torch", "transformers", "pillow")


@dataclass(frozen=True, kw_only=True)
class EvalEnd:
    """How one process of an evaluation ended.

    Attributes:
        results: content of `results.json`.
        published: rows of Table 1 of models of the checkpoint's size.
        interrupted_by: the signal after which no other question was asked; 0 without a signal.
    """

    results: dict[str, Any]
    published: dict[str, dict[str, float]]
    interrupted_by: int

    @property
    def num_unusable(self) -> int:
        """Questions that could not be asked."""
        return sum(len(found["unusable"]) for found in self.results["benchmarks"].values())


def run_eval(settings: EvalSettings) -> EvalEnd:
    """Ask the questions that are left, and score the benchmarks that are complete.

    The first of the processes that a launcher started ends last: it waits for the answers of the others.

    Raises:
        DumpStopped: a signal ended it at once.
        InputError: unusable data or checkpoint, an output of other settings, or out of memory.
        StoreError: the output cannot be written.
    """
    waits = launched_rank(os.environ, settings.worker) == 0
    benchmarks = [_Data.read(name, settings.data, limit=settings.limit) for name in settings.benchmarks]
    output = EvalOutput(settings.out, force=settings.force)
    output.claim([settings.data, Path(settings.checkpoint)])
    with memory_errors("lower --batch, choose a smaller --dtype, or --device cpu"):
        model = _Model(settings)
        output.begin(model.settings)
        asked: list[AskedBenchmark] = []
        signal, results = 0, dict[str, Any]()
        for data in benchmarks:
            asked.append(_begun(data, output, model))
            signal = _ask(asked[-1], data, model)
            results = write_results(output, model.about, asked[-1:])
            if signal:
                break
        if waits and not signal:
            signal = _end_last(asked, benchmarks, model)
        # another process may have finished them meanwhile
        if late := [one for one in asked if results["benchmarks"][one.name]["headline"] is None]:
            results = write_results(output, model.about, late)
    return EvalEnd(results=results, published=published_rows(model.checkpoint.config), interrupted_by=signal)


def check_data(name: str, root: Path) -> None:
    """Find out whether the questions of a benchmark can be asked, and answers to them be scored.

    Args:
        root: the folder that holds a folder per benchmark, or that of the only benchmark.

    Raises:
        InputError: a file or an image is missing, or question file and annotation do not belong together.
    """
    _Data.read(name, root, limit=None)


def made_with(settings: EvalSettings) -> dict[str, Any]:
    """What decides the answers; content of `run.json`. Every byte of the weights is read.

    Raises:
        InputError: unusable checkpoint.
    """
    return _Model(settings).settings


@dataclass(frozen=True, kw_only=True)
class _Data:
    """The questions of a benchmark.

    Attributes:
        folder: the folder of the benchmark's data.
        questions: those to ask.
        limit: their number if there are more; None for all.
    """

    name: str
    folder: Path
    questions: Sequence[Question]
    limit: int | None

    @classmethod
    def read(cls, name: str, root: Path, *, limit: int | None) -> "_Data":
        """Read the questions, and find out now whether answers to all of them could be scored."""
        folder = benchmark_folder(root, name)
        questions = BENCHMARKS[name].questions(folder)
        try:
            BENCHMARKS[name].score(folder, [unanswered(question) for question in questions])
        except AnswersError as error:
            raise InputError(f"{folder}: the questions are not those of the annotation: {error}") from None
        limit = limit if limit is not None and limit < len(questions) else None
        return cls(name=name, folder=folder, questions=questions[:limit], limit=limit)


class _Model:
    """The checkpoint; its weights are loaded when a question is asked."""

    def __init__(self, settings: EvalSettings) -> None:
        self.settings_given = settings
        self.device = usable_device(device_of_worker(settings.device))
        self.checkpoint: Checkpoint = open_checkpoint(
            settings.checkpoint, vision_config=settings.vision_config, processor=settings.processor
        )
        self._preparation = self.checkpoint.preparation()
        for warning in self._preparation.warnings():
            say(warning)

    @property
    def is_original(self) -> bool:
        """Whether prompts and pixels are those of the original's evaluation."""
        return self.checkpoint.family == "mobilevlm"

    @cached_property
    def settings(self) -> dict[str, Any]:
        """What decides the answers; content of `run.json`."""
        given = self.settings_given
        return {
            "checkpoint": given.checkpoint,
            "model_id": model_name(given.checkpoint),
            "family": self.checkpoint.family,
            "dtype": given.dtype,
            "weights": self.checkpoint.fingerprint,
            **self.checkpoint.settings_fingerprint,
            **self._preparation.fingerprint,
        }

    @property
    def about(self) -> dict[str, Any]:
        """The head of `results.json`."""
        notes = [] if self.is_original else [NOT_THE_PAPERS]
        if self.is_original and self.settings_given.dtype != "float16":
            notes = [f"dtype is {self.settings_given.dtype}; the paper's numbers are of float16"]
        return {**self.settings, "prompts": "original" if self.is_original else "chat template", "notes": notes}

    @property
    def process(self) -> Process:
        """What the answers of this process are generated on."""
        name = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else str(self.device)
        return Process(device=name, batch=self.settings_given.batch, versions={one: version(one) for one in LIBRARIES})

    @cached_property
    def loaded(self) -> VisionLanguageModel:
        """The model on its device.

        Raises:
            InputError: unusable weights, or not enough memory.
        """
        dtype = TORCH_DTYPES[self.settings_given.dtype]
        line, warnings = device_report(self.device, dtype, chosen=self.settings_given.device is not None)
        for text in (line, *warnings):
            say(text)
        return self.checkpoint.load_model(dtype=dtype, device=self.device)


def _begun(data: _Data, output: EvalOutput, model: _Model) -> AskedBenchmark:
    folder = output.begin_benchmark(data.name, question_settings(data.questions, data.folder, data.limit))
    with disk_errors(f"answers {folder}"):
        (folder / PARTS).mkdir(exist_ok=True)
    return AskedBenchmark(
        name=data.name,
        data=data.folder,
        parts=AnswerParts(folder, data.questions, model.process),
        limit=data.limit,
        model_id=str(model.settings["model_id"]),
    )


def _end_last(asked: Sequence[AskedBenchmark], benchmarks: Sequence[_Data], model: _Model) -> int:
    """Wait for the blocks of other processes, and ask those that they leave; return the signal that ended it, or 0."""
    for one, data in zip(asked, benchmarks, strict=True):
        while pending := one.parts.pending_shards():
            if all(one.parts.is_in_hand(block) for block in pending):
                time.sleep(_POLL_SECONDS)
            elif signal := _ask(one, data, model):
                return signal
    return 0


def _ask(asked: AskedBenchmark, data: _Data, model: _Model) -> int:
    """Ask the questions that are left; return the signal that stopped it, or 0."""
    if not asked.parts.pending_shards():
        return 0
    preparation = preparation_for(model.checkpoint, data.questions)
    given = model.settings_given
    end = run_as_worker(
        f"eval {data.name}",
        given.worker,
        unit="question",
        run=lambda control: Answering(
            model=model.loaded, preparation=preparation, control=control, folder=data.folder, batch=given.batch
        ).answer(asked.parts),
    )
    return end.interrupted_by
