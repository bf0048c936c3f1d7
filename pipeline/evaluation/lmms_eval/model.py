"""The class that lmms-eval creates. Only lmms-eval imports this module: it is the only one that needs it."""

import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lmms_eval.api.model import lmms
from tqdm import tqdm

from alignkd.pipeline.console.printing import say
from alignkd.pipeline.evaluation.lmms_eval.answering import RequestAnswering
from alignkd.pipeline.evaluation.lmms_eval.asked import Asked, GenerationSettings, images_of
from alignkd.vlm.errors import InputError
from alignkd.vlm.settings import ProcessorKind


class AlignKDModel(lmms):  # type: ignore[misc]
    """A checkpoint that alignkd can load, as a model of lmms-eval.

    Answers are greedy; a task that asks for sampling or several beams is refused.

    Args:
        pretrained: folder or hub id.
        batch_size: largest number of prompts in a batch.
        device: torch device; None takes the GPU of this process, or the CPU.
        dtype: dtype of weights, pixels and logits.
        vision_config: folder with the vision tower's config.json, overriding the checkpoint's `mm_vision_tower`.
        processor: image processor of models of transformers; `pil` needs no torchvision.

    Raises:
        InputError: unusable checkpoint, device or dtype, or not enough memory.
    """

    is_simple = True

    def __init__(
        self,
        pretrained: str,
        batch_size: int | str = 1,
        device: str | None = None,
        dtype: str = "float16",
        vision_config: str | None = None,
        processor: ProcessorKind = "auto",
    ) -> None:
        # lmms-eval names its cache by this, and reads a folder `7` in --model_args as a number
        self.pretrained = str(pretrained)
        super().__init__()
        if not str(batch_size).isdecimal() or int(batch_size) < 1:
            raise InputError(f"--batch_size is {batch_size!r}, not a number from 1; alignkd halves a batch by itself")
        self._answering = RequestAnswering.open(
            self.pretrained,
            batch=int(batch_size),
            dtype=dtype,
            device=device,
            vision_config=None if vision_config is None else Path(str(vision_config)),
            processor=processor,
        )
        # lmms-eval divides the requests by the same variables
        self._rank = int(os.environ.get("RANK", "0"))
        self._world_size = int(os.environ.get("WORLD_SIZE", "1"))

    @property
    def device(self) -> torch.device:
        """Where the model is; lmms-eval gathers results there."""
        return self._answering.device

    @property
    def batch_size(self) -> int:
        """Largest number of prompts in a batch."""
        return self._answering.batch

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        """The answers in the order of the requests.

        Args:
            requests: instances of lmms-eval, with `args` (context, settings, doc_to_visual, doc_id, task, split).

        Raises:
            InputError: a task that asks for something else than greedy answers about images.
        """
        settings = [GenerationSettings.read(request.args[1], request.args[4]) for request in requests]
        self._report_ignored(requests, settings)
        asked = [partial(self._asked, *pair) for pair in zip(requests, settings, strict=True)]
        # disable=None: no bar if stderr is not a terminal
        with tqdm(total=len(asked), desc="alignkd", unit="question", disable=True if self._rank else None) as bar:
            return self._answering.answer(asked, bar.update)

    def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
        """Not available.

        Raises:
            InputError: always.
        """
        raise _unavailable("the log-likelihood of given answers")

    def generate_until_multi_round(self, requests: Sequence[Any]) -> list[str]:
        """Not available.

        Raises:
            InputError: always.
        """
        raise _unavailable("several rounds of questions")

    def _asked(self, request: Any, settings: GenerationSettings) -> Asked:
        context, _, doc_to_visual, doc_id, task, split = request.args
        name = f"task {task}, document {doc_id}"
        visuals: Callable[[Any], object] = doc_to_visual
        images = images_of(visuals(self.task_dict[task][split][doc_id]), name)
        return Asked(name=name, context=context, images=images, settings=settings)

    def _report_ignored(self, requests: Sequence[Any], settings: Sequence[GenerationSettings]) -> None:
        ignored = {request.args[4]: one.ignored for request, one in zip(requests, settings, strict=True) if one.ignored}
        for task, names in ignored.items():
            say(f"task {task}: alignkd ignores the generation settings {', '.join(names)}")


def _unavailable(what: str) -> InputError:
    return InputError(
        f"alignkd generates answers only, but a task asks for {what}; choose tasks with output_type generate_until"
    )
