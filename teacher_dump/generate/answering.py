"""Answers the questions of a window of conversations: all first questions, then all second ones, and so on."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace

from alignkd.teacher_dump.bucketing import length_buckets
from alignkd.teacher_dump.generate.conversation import Conversation
from alignkd.teacher_dump.generate.job import GenerateJob
from alignkd.teacher_dump.generate.sampling import Sampler, answer_key
from alignkd.teacher_dump.operation.memory_faults import in_halves
from alignkd.teacher_dump.operation.unusable import does_not_fit
from alignkd.teacher_dump.preparation import PreparationThreads, Prepared, Window
from alignkd.vlm.data.data_list import sample_files
from alignkd.vlm.data.turns import Generated
from alignkd.vlm.errors import SampleError
from alignkd.vlm.families.family import VisionLanguageModel
from alignkd.vlm.families.generation import Continuation, generate, most_probable
from alignkd.vlm.inputs.examples import Preparation
from alignkd.vlm.inputs.image_file import image_size

# decimals of a log-probability in the data: the last bits of a sum depend on the batch
DECIMALS = 4


class Answering:
    """A teacher that answers.

    Args:
        halved: called each time a batch is halved.
    """

    def __init__(
        self,
        job: GenerateJob,
        model: VisionLanguageModel,
        preparation: Preparation,
        threads: PreparationThreads,
        halved: Callable[[], object],
    ) -> None:
        self._job, self._model, self._preparation, self._threads = job, model, preparation, threads
        self._halved = halved
        config = model.config
        self._num_tokens = min(preparation.num_tokens, config.vocab_size) if config.pads_vocabulary else None
        self._positions = min(config.max_positions, job.max_tokens or config.max_positions)

    def ended(self, asked: Sequence[Conversation], window: Window) -> Iterator[list[Conversation]]:
        """The conversations, in groups as they end: with all answers, or with a reason.

        Args:
            asked: conversations with a question, in the order of the window's samples.
            window: their prepared prompts.
        """
        while asked:
            start = window.plan.start
            failed = []
            for unusable in window.unusable:
                conversation = asked[unusable.place - start]
                conversation.reason = unusable.reason
                failed.append(conversation)
            yield failed
            going_on: list[tuple[int, Conversation]] = []
            for batch in self._answered(asked, window):
                yield [asked[place - start] for place in batch if not asked[place - start].asks]
                going_on += [(place, asked[place - start]) for place in batch if asked[place - start].asks]
            asked = [conversation for _, conversation in sorted(going_on, key=lambda item: item[0])]
            window = self._threads.window([conversation.prompt() for conversation in asked])

    def _answered(self, asked: Sequence[Conversation], window: Window) -> Iterator[list[int]]:
        """Answer one question of each prepared conversation; yields the places of those of each batch."""
        teacher, start = self._job.teacher, window.plan.start
        prepared = self._with_room(asked, window)
        kept = {sample.place for sample in prepared}
        yield [sample.place for sample in window.prepared if sample.place not in kept]
        lengths = [sample.length + self._limit(sample) for sample in prepared]
        buckets = length_buckets(lengths, token_budget=teacher.token_budget, max_samples=teacher.batch)
        for batch in self._threads.batches(prepared, buckets):
            compute = lambda part: self._generate(part, [asked[one.place - start] for one in part])  # noqa: E731
            for part, found in in_halves(compute, batch, self._halved):
                for number, sample in enumerate(part):
                    conversation = asked[sample.place - start]
                    if found is None:
                        conversation.reason = does_not_fit(sample, self._model.device).reason
                    else:
                        self._take(conversation, found[number], sample)
                yield [sample.place for sample in part]

    def _with_room(self, asked: Sequence[Conversation], window: Window) -> list[Prepared]:
        """The prepared prompts after which there is room for an answer."""
        kept = []
        for sample in window.prepared:
            if self._limit(sample) > 0:
                kept.append(sample)
                continue
            asked[sample.place - window.plan.start].reason = SampleError(
                f"the question has {sample.length} tokens, which leaves no room for an answer within {self._positions}"
            )
        return kept

    def _limit(self, sample: Prepared) -> int:
        """Longest answer after a prompt, in tokens."""
        return min(self._job.generate.max_new_tokens, self._positions - sample.length)

    def _generate(self, part: Sequence[Prepared], conversations: Sequence[Conversation]) -> list[Continuation]:
        settings = self._job.generate
        choose = most_probable
        if settings.sampling == "sample":
            keys = [answer_key(settings.seed, c.sample.index, c.entry, len(c.written)) for c in conversations]
            choose = Sampler(keys=keys, temperature=settings.temperature, top_p=settings.top_p)
        return generate(
            self._model,
            [replace(sample.example, images=sample.images) for sample in part],
            limits=[self._limit(sample) for sample in part],
            stop_ids=self._preparation.stop_ids,
            choose=choose,
            num_tokens=self._num_tokens,
            check=self._job.control.check,
        )

    def _take(self, conversation: Conversation, found: Continuation, prompt: Prepared) -> None:
        generated = Generated(
            by=self._job.teacher.checkpoint,
            logprob=min(0.0, round(found.logprob, DECIMALS)),
            tokens=found.num_tokens,
            finished=found.finished,
        )
        conversation.answer(self._preparation.decode(found.ids).strip(), generated)
        if conversation.reason is None and not conversation.asks:
            conversation.reason = self._problem(conversation, prompt.image_files)

    def _problem(self, conversation: Conversation, files: Iterable[bytes]) -> SampleError | None:
        """Why no target could be computed of a conversation that is finished, None if one could.

        Args:
            files: the images up to the last question.
        """
        try:
            known = [image_size(file) for file in files]
            later = replace(conversation.sample, images=conversation.sample.images[len(known) :])
            sizes = [*known, *map(image_size, sample_files(later))]
            self._preparation.tokenize(conversation.turns, sizes)
        except SampleError as error:
            return SampleError(f"unusable with the teacher's answer: {error}")
        return None
