"""Counts per sample: ignored keys, marks in texts, and reasons for unusable texts."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from alignkd.pipeline.data.answers import AnswerCounts
from alignkd.vlm.data.entries.keys import keys_not_read
from alignkd.vlm.data.entries.media_marks import marks_in
from alignkd.vlm.data.sample import Sample
from alignkd.vlm.errors import one_line

# Limits memory for a file in which every sample has other keys.
MAX_NAMES = 1000
OTHERS = "(others)"


@dataclass(frozen=True)
class Notes:
    """Numbers of samples by what was found in them.

    Attributes:
        keys: ignored key -> samples with it; a key of a turn is `conversations[].KEY`.
        marks: mark that other programs replace by an image -> usable samples without an image that have it.
        reasons: reason -> samples whose text is unusable for it.
        answers: answers that a model wrote, and questions without an answer.
    """

    keys: Counter[str] = field(default_factory=Counter)
    marks: Counter[str] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)
    answers: AnswerCounts = field(default_factory=AnswerCounts)

    def note(self, entry: Any, sample: Sample, reason: str) -> None:
        """Count one sample."""
        _count(
            self.keys,
            ((one_line(key)[:60], 1) for key in keys_not_read(entry, "missing" if sample.unanswered else "given")),
        )
        if reason:
            _count(self.reasons, [(reason, 1)])
        elif not sample.images:
            _count(self.marks, ((mark[:60], 1) for mark in marks_in(sample.turns)))
        if not reason or sample.unanswered:
            self.answers.note(sample)

    def add(self, other: "Notes") -> None:
        """Count the samples of another batch too."""
        for mine, theirs in ((self.keys, other.keys), (self.marks, other.marks), (self.reasons, other.reasons)):
            _count(mine, theirs.items())
        self.answers.add(other.answers)


def most_frequent(counter: Counter[str]) -> dict[str, int]:
    """The counts as a dictionary, the most frequent first, equal ones by name."""
    return dict(sorted(counter.items(), key=lambda item: (-item[1], item[0])))


def _count(counter: Counter[str], found: Iterable[tuple[str, int]]) -> None:
    for name, number in found:
        counter[name if name in counter or len(counter) < MAX_NAMES else OTHERS] += number
