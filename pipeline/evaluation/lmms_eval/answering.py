"""Answers to the requests of lmms-eval, with the prompts and the generation of `alignkd eval`."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from alignkd.pipeline.config.checkpoint_config import vision_config_of
from alignkd.pipeline.console.printing import say
from alignkd.pipeline.evaluation.batches import Batches
from alignkd.pipeline.evaluation.journal import Answered
from alignkd.pipeline.evaluation.lmms_eval.asked import Asked
from alignkd.pipeline.evaluation.prompts import preparation_for
from alignkd.pipeline.runs.teacher.worker import device_of_worker
from alignkd.teacher_dump.operation.control import DumpControl
from alignkd.teacher_dump.preparation import PlannedWindow, PreparationThreads
from alignkd.vlm.errors import InputError
from alignkd.vlm.families.family import VisionLanguageModel
from alignkd.vlm.families.open import open_checkpoint
from alignkd.vlm.families.shared_images import SharedImages
from alignkd.vlm.hardware.device_report import device_report
from alignkd.vlm.hardware.devices import TORCH_DTYPES, usable_device
from alignkd.vlm.hardware.memory_faults import memory_errors
from alignkd.vlm.inputs.examples import Preparation
from alignkd.vlm.inputs.image_file import own_images
from alignkd.vlm.settings import ProcessorKind

BATCHES_OF_WINDOW = 8
THREADS = 4


@dataclass(frozen=True, kw_only=True)
class RequestAnswering:
    """A loaded checkpoint that answers requests.

    Attributes:
        batch: largest number of prompts in a batch.
    """

    model: VisionLanguageModel
    preparation: Preparation
    batch: int

    @classmethod
    def open(
        cls,
        checkpoint: str,
        *,
        batch: int,
        dtype: str,
        device: str | None = None,
        vision_config: Path | None = None,
        processor: ProcessorKind = "auto",
    ) -> "RequestAnswering":
        """Load a checkpoint; arguments as in `EvalSettings`.

        Raises:
            InputError: unusable checkpoint, device or dtype, or not enough memory.
        """
        if dtype not in TORCH_DTYPES:
            raise InputError(f"dtype is {dtype!r}; choose one of {', '.join(TORCH_DTYPES)}")
        where = usable_device(device_of_worker(device))
        found = open_checkpoint(
            checkpoint, vision_config=vision_config or vision_config_of(checkpoint), processor=processor
        )
        preparation = preparation_for(found, [])
        line, warnings = device_report(where, TORCH_DTYPES[dtype], chosen=device is not None)
        for text in (*preparation.warnings(), line, *warnings):
            say(text)
        with memory_errors("choose a smaller dtype, or device=cpu, in --model_args"):
            model = found.load_model(dtype=TORCH_DTYPES[dtype], device=where)
        return cls(model=model, preparation=preparation, batch=batch)

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.model.device

    def answer(self, requests: Sequence[Callable[[], Asked]], done: Callable[[int], object]) -> list[str]:
        """The answers in the order of the requests; an empty one, and a line on stderr, where none is possible.

        Args:
            requests: make the requests, so that the images of a few windows only are in memory.
            done: called with the number of requests of each batch.

        Raises:
            InputError: a request that alignkd does not understand, or logits that are not finite.
        """
        texts = [""] * len(requests)
        refused = 0
        with memory_errors("lower --batch_size"):
            for asked, one in self._answered(requests):
                texts[one.position] = asked.settings.cut(one.text)
                if one.unusable is not None:
                    refused += 1
                    say(f"{asked.name} has no answer: {one.unusable}")
                done(1)
        if refused:
            say(f"{refused} of {len(requests)} questions could not be asked and count as empty answers")
        return texts

    def _answered(self, requests: Sequence[Callable[[], Asked]]) -> Iterator[tuple[Asked, Answered]]:
        asked: dict[int, Asked] = {}
        batches = Batches(
            model=self.model,
            preparation=self.preparation,
            control=DumpControl(),
            images=SharedImages(self.model),
            batch=self.batch,
        )
        # lmms-eval sets Pillow to accept truncated files; the images here are PNG files that `Asked` wrote
        with own_images(), PreparationThreads(self.preparation, None, THREADS, questions=True) as threads:
            for window in threads.windows(self._windows(requests, asked)):
                for answers in batches.answered(window, threads, lambda index: asked[index].settings.max_new_tokens):
                    for one in answers:
                        yield asked.pop(one.position), one

    def _windows(self, requests: Sequence[Callable[[], Asked]], asked: dict[int, Asked]) -> Iterator[PlannedWindow]:
        size = self.batch * BATCHES_OF_WINDOW
        for start in range(0, len(requests), size):
            numbers = range(start, min(start + size, len(requests)))
            asked |= {number: requests[number]() for number in numbers}
            samples = [asked[number].sample(number) for number in numbers]
            yield PlannedWindow(shard=0, start=start, samples=samples, is_last=False)
