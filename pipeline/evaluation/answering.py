"""A model answers the questions of one benchmark: blocks, batches of prompts of like length, one line per answer.

Threads read and prepare the images of the next block while the model answers this one.
"""

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from alignkd.evaluation.answers import clean_text
from alignkd.pipeline.evaluation.journal import Answered, Journal
from alignkd.pipeline.evaluation.parts import AnswerParts
from alignkd.pipeline.evaluation.prompts import sample_of
from alignkd.pipeline.evaluation.shared_images import SharedImages
from alignkd.teacher_dump.bucketing import length_buckets
from alignkd.teacher_dump.operation.control import DumpControl
from alignkd.teacher_dump.operation.memory_faults import in_halves
from alignkd.teacher_dump.operation.unusable import does_not_fit
from alignkd.teacher_dump.preparation import PlannedWindow, PreparationThreads, Prepared, Window
from alignkd.vlm.errors import one_line
from alignkd.vlm.families.family import VisionLanguageModel
from alignkd.vlm.families.generation import Continuation, generate
from alignkd.vlm.inputs.examples import Preparation

STOPPING = "alignkd: finishing the questions in hand; Ctrl-C again stops at once"


@dataclass(frozen=True, kw_only=True)
class Answering:
    """What answers.

    Attributes:
        preparation: makes the prompts, see `prompts.preparation_for`.
        folder: the benchmark's folder.
        batch: largest number of prompts in a batch.
        threads: threads that prepare prompts.
    """

    model: VisionLanguageModel
    preparation: Preparation
    control: DumpControl
    folder: Path
    batch: int
    threads: int = 4

    def answer(self, parts: AnswerParts) -> None:
        """Ask all questions that no other process asks, until a signal stops it.

        Raises:
            DumpStopped: a signal ended it at once.
            InputError: logits that are not finite.
            StoreError: an answer cannot be written.
        """
        threads = PreparationThreads(self.preparation, self.folder, self.threads, self.control.check, questions=True)
        images = SharedImages(self.model)
        with self.control.over(parts) as blocks, threads:
            for window in threads.windows(self._windows(parts, blocks)):
                if self.control.stops.finishing:  # the block was requested one block ahead
                    return
                with parts.open(window.plan.shard) as journal:
                    self._answer(window, threads, parts, journal, images)
                if self.control.stops.finishing:
                    return
                self.control.committed(window.plan.shard, samples=len(window.plan.samples), num_bytes=0)

    def _windows(self, parts: AnswerParts, blocks: Iterable[int]) -> Iterator[PlannedWindow]:
        for block in blocks:
            # nothing is lost between two batches, so that a stop needs no end of the block
            self.control.stops.announce = lambda: STOPPING
            positions = parts.planned_samples(block)
            samples = [sample_of(parts.questions[position], position, self.folder) for position in positions]
            yield PlannedWindow(shard=block, start=0, samples=samples, is_last=True)

    def _answer(
        self,
        window: Window,
        threads: PreparationThreads,
        parts: AnswerParts,
        journal: Journal,
        images: SharedImages,
    ) -> None:
        """Ask the questions of a window; a stop leaves the rest of them."""
        limits = {one.sample.index: self._limit(parts, one) for one in window.prepared}
        usable = [one for one in window.prepared if limits[one.sample.index] > 0]
        refused = [Answered(position=one.sample.index, unusable=one_line(one.reason)) for one in window.unusable]
        refused += [self._without_room(one) for one in window.prepared if limits[one.sample.index] <= 0]
        self._note(journal, refused)
        lengths = [one.length for one in usable]
        buckets = length_buckets(lengths, token_budget=self.batch * max(lengths, default=0), max_samples=self.batch)
        started = time.monotonic()
        for batch in threads.batches(usable, buckets):
            compute = lambda part: self._generate(part, [limits[one.sample.index] for one in part], images)  # noqa: E731
            for part, found in in_halves(compute, batch, lambda: self.control.advance(halved=1)):
                ended = time.monotonic()
                seconds, started = (ended - started) / len(part), ended
                self._note(journal, self._answered(part, found, seconds))
            if self.control.stops.finishing:
                return

    def _limit(self, parts: AnswerParts, prompt: Prepared) -> int:
        """Longest answer in tokens: that of the question, or what the model's positions leave."""
        wanted = parts.questions[prompt.sample.index].max_new_tokens
        return min(wanted, self.model.config.max_positions - prompt.length)

    def _without_room(self, prompt: Prepared) -> Answered:
        reason = (
            f"the prompt has {prompt.length} tokens, which leaves no room for an answer within "
            f"{self.model.config.max_positions}"
        )
        return Answered(position=prompt.sample.index, unusable=reason)

    def _generate(self, part: Sequence[Prepared], limits: Sequence[int], images: SharedImages) -> list[Continuation]:
        # a column without an entry of the tokenizer has no text
        num_tokens = min(self.preparation.num_tokens, self.model.config.vocab_size)
        return generate(
            self.model,
            [one.example for one in part],
            limits=limits,
            stop_ids=self.preparation.stop_ids,
            num_tokens=num_tokens,
            vision=images.encoded(part),
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

    def _note(self, journal: Journal, answers: Sequence[Answered]) -> None:
        """Write answers down, then count them."""
        if not answers:
            return
        journal.add(answers)
        refused = sum(one.unusable is not None for one in answers)
        tokens = sum(one.tokens for one in answers)
        self.control.advance(written=len(answers) - refused, errors=refused, tokens=tokens)
        self.control.check()
