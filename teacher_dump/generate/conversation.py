"""A conversation whose questions a teacher answers one after the other."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Literal

from alignkd.vlm.data.sample import Sample
from alignkd.vlm.data.turn_checks import IMAGE_PLACEHOLDER
from alignkd.vlm.data.turns import Generated, Turn
from alignkd.vlm.errors import SampleError


@dataclass
class Conversation:
    """An entry that is not complete yet; `begin` makes it.

    Attributes:
        sample: the sample of the data.
        entry: number of the entry of this sample, from 0.
        turns: the turns so far, with the questions that are still to be answered.
        written: how each answer was written that the teacher has written, in order.
        reason: why there is no entry; None while and where there is one.
    """

    sample: Sample
    entry: int
    turns: list[Turn] = field(default_factory=list)
    written: list[Generated] = field(default_factory=list)
    reason: SampleError | None = None

    @classmethod
    def begin(cls, sample: Sample, entry: int, answers: Literal["missing", "all"]) -> "Conversation":
        """The conversation of a sample before the first answer.

        Args:
            answers: `all` drops the answers that the sample has. With `missing`, a question without an answer is a
                problem unless the data set may have some (`answers: missing`).
        """
        if sample.problem is not None and not sample.unanswered:
            return cls(sample, entry, reason=SampleError(sample.problem))
        if any(content is not None for content in sample.contents):
            reason = "the data file holds an image of the sample; write it to a folder by `alignkd data convert`"
            return cls(sample, entry, reason=SampleError(reason))
        if answers == "all":
            return cls(sample, entry, turns=[turn for turn in sample.turns if turn.speaker != "gpt"])
        if not sample.unanswered and next_question(sample.turns) is not None:
            reason = "question without an answer; set `answers: missing` in the section of its data set"
            return cls(sample, entry, reason=SampleError(reason))
        return cls(sample, entry, turns=list(sample.turns))

    @property
    def asks(self) -> bool:
        """Whether a question is left."""
        return self.reason is None and next_question(self.turns) is not None

    def prompt(self) -> Sample:
        """The sample up to the next question, which must exist, with the images that it shows by then."""
        place = next_question(self.turns)
        assert place is not None
        turns = tuple(self.turns[: place + 1])
        later = sum(turn.value.count(IMAGE_PLACEHOLDER) for turn in self.turns[place + 1 :])
        # the image of a later turn is not shown yet; a wrong number of marks is found by the preparation
        images = self.sample.images[: max(0, len(self.sample.images) - later)]
        return replace(self.sample, turns=turns, images=images, contents=(), problem=None, unanswered=False)

    def answer(self, text: str, generated: Generated) -> None:
        """Put the teacher's answer after the next question; an empty one makes the conversation unusable."""
        if not text:
            self.reason = SampleError(f"the teacher's answer to question {self._question} is empty")
            return
        place = next_question(self.turns)
        assert place is not None
        self.turns.insert(place + 1, Turn("gpt", text, generated=generated))
        self.written.append(generated)

    def finished(self, *, number_id: bool) -> Sample:
        """The sample with its answers.

        Args:
            number_id: end the id with the number of the entry, from 1.
        """
        sample_id = f"{self.sample.id}-{self.entry + 1}" if number_id else self.sample.id
        return replace(self.sample, id=sample_id, turns=tuple(self.turns), problem=None, unanswered=False)

    @property
    def _question(self) -> int:
        """Number of the next question, from 1."""
        place = next_question(self.turns) or 0
        return sum(turn.speaker == "human" for turn in self.turns[: place + 1])


def next_question(turns: Sequence[Turn]) -> int | None:
    """Position of the first human turn that no answer follows; None if all are answered."""
    speakers = [*(turn.speaker for turn in turns), ""]
    places = (n for n, pair in enumerate(pairwise(speakers)) if pair[0] == "human" and pair[1] != "gpt")
    return next(places, None)
