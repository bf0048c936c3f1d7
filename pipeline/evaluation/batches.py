"""Answers to the prompts of a window: batches of like length, each distinct image encoded once."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from alignkd.evaluation.answers import clean_text
from alignkd.pipeline.evaluation.journal import Answered
from alignkd.teacher_dump.bucketing import length_buckets
from alignkd.teacher_dump.operation.control import DumpControl
from alignkd.teacher_dump.operation.memory_faults import in_halves
from alignkd.teacher_dump.operation.unusable import does_not_fit
from alignkd.teacher_dump.preparation import PreparationThreads, Prepared, Window
from alignkd.vlm.errors import one_line
from alignkd.vlm.families.family import VisionLanguageModel
from alignkd.vlm.families.generation import Continuation, generate
from alignkd.vlm.families.shared_images import SharedImages
from alignkd.vlm.inputs.examples import Preparation


@dataclass(frozen=True, kw_only=True)
class Batches:
    """What answers prompts.

    Attributes:
        preparation: made the prompts.
        control: counts the batches that were halved; its check may end the generation.
        images: encodes the images of prompts.
        batch: largest number of prompts in a batch.
    """

    model: VisionLanguageModel
    preparation: Preparation
    control: DumpControl
    images: SharedImages
    batch: int

    def answered(
        self, window: Window, threads: PreparationThreads, wanted: Callable[[int], int]
    ) -> Iterator[list[Answered]]:
        """The answers to a window as they come; first the questions that cannot be asked.

        Args:
            threads: prepared the window.
            wanted: longest answer in tokens to the sample of an index.

        Raises:
            DumpStopped: a signal ended it at once.
            InputError: logits that are not finite.
        """
        limits = {one.sample.index: self._limit(wanted(one.sample.index), one) for one in window.prepared}
        usable = [one for one in window.prepared if limits[one.sample.index] > 0]
        refused = [Answered(position=one.sample.index, unusable=one_line(one.reason)) for one in window.unusable]
        refused += [self._without_room(one) for one in window.prepared if limits[one.sample.index] <= 0]
        yield refused
        lengths = [one.length for one in usable]
        buckets = length_buckets(lengths, token_budget=self.batch * max(lengths, default=0), max_samples=self.batch)
        started = time.monotonic()
        for batch in threads.batches(usable, buckets):
            compute = lambda part: self._generate(part, [limits[one.sample.index] for one in part])  # noqa: E731
            for part, found in in_halves(compute, batch, lambda: self.control.advance(halved=1)):
                ended = time.monotonic()
                seconds, started = (ended - started) / len(part), ended
                yield self._answered(part, found, seconds)

    def _limit(self, wanted: int, prompt: Prepared) -> int:
        """Longest answer in tokens: what is wanted, or what the model's positions leave."""
        return min(wanted, self.model.config.max_positions - prompt.length)

    def _without_room(self, prompt: Prepared) -> Answered:
        reason = (
            f"the prompt has {prompt.length} tokens, which leaves no room for an answer within "
            f"{self.model.config.max_positions}"
        )
        return Answered(position=prompt.sample.index, unusable=reason)

    def _generate(self, part: Sequence[Prepared], limits: Sequence[int]) -> list[Continuation]:
        # a column without an entry of the tokenizer has no text
        num_tokens = min(self.preparation.num_tokens, self.model.config.vocab_size)
        return generate(
            self.model,
            [one.example for one in part],
            limits=limits,
            stop_ids=self.preparation.stop_ids,
            num_tokens=num_tokens,
            vision=self.images.encoded(part),
            check=self.control.check,
        )

    def _answered(
        self, part: Sequence[Prepared], found: Sequence[Continuation] | None, seconds: float
    ) -> list[Answered]:
        if found is None:  # one question that does not fit the device, even alone
            reason = one_line(does_not_fit(part[0], self.model.device).reason)
            return [Answered(position=part[0].sample.index, unusable=reason)]
        return [
            Answered(
                position=prompt.sample.index,
                text=clean_text(self.preparation.decode(one.ids)),
                tokens=len(one.ids),
                finished=one.finished,
                seconds=round(seconds, 6),
            )
            for prompt, one in zip(part, found, strict=True)
        ]
