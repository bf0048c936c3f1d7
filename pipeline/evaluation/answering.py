"""A model answers the questions of one benchmark: blocks of questions, one line of a journal per answer.

Threads read and prepare the images of the next block while the model answers this one.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from alignkd.pipeline.evaluation.batches import Batches
from alignkd.pipeline.evaluation.journal import Answered, Journal
from alignkd.pipeline.evaluation.parts import AnswerParts
from alignkd.pipeline.evaluation.prompts import sample_of
from alignkd.teacher_dump.operation.control import DumpControl
from alignkd.teacher_dump.preparation import PlannedWindow, PreparationThreads, Window
from alignkd.vlm.families.family import VisionLanguageModel
from alignkd.vlm.families.shared_images import SharedImages
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
        batches = Batches(
            model=self.model,
            preparation=self.preparation,
            control=self.control,
            images=SharedImages(self.model),
            batch=self.batch,
        )
        with self.control.over(parts) as blocks, threads:
            for window in threads.windows(self._windows(parts, blocks)):
                if self.control.stops.finishing:  # the block was requested one block ahead
                    return
                with parts.open(window.plan.shard) as journal:
                    self._answer(window, threads, parts, journal, batches)
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
        batches: Batches,
    ) -> None:
        """Ask the questions of a window; a stop leaves the rest of them."""
        for answers in batches.answered(window, threads, lambda position: parts.questions[position].max_new_tokens):
            self._note(journal, answers)
            if self.control.stops.finishing:
                return

    def _note(self, journal: Journal, answers: Sequence[Answered]) -> None:
        """Write answers down, then count them."""
        if not answers:
            return
        journal.add(answers)
        refused = sum(one.unusable is not None for one in answers)
        tokens = sum(one.tokens for one in answers)
        self.control.advance(written=len(answers) - refused, errors=refused, tokens=tokens)
        self.control.check()
