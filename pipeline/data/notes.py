"""What is noticed in entries and texts, counted per sample: keys, marks, and why texts are unusable."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from alignkd.vlm.data.conversations import Sample
from alignkd.vlm.data.entry_keys import keys_not_read
from alignkd.vlm.data.media_marks import marks_in
from alignkd.vlm.errors import one_line

# A file whose keys are ids must not fill the memory.
MAX_NAMES = 1000
OTHERS = "(others)"


@dataclass(frozen=True)
class Notes:
    """Samples by what was noticed in them.

    Attributes:
        keys: with a key that is not read, by the key; of turns as `conversations[].KEY`.
        marks: usable ones without an image, by a mark in their text that other programs replace by one.
        reasons: whose text is unusable, by the reason.
    """

    keys: Counter[str] = field(default_factory=Counter)
    marks: Counter[str] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)

    def note(self, entry: Any, sample: Sample, reason: str) -> None:
        """Count one sample."""
        _count(self.keys, ((one_line(key)[:60], 1) for key in keys_not_read(entry)))
        if reason:
            _count(self.reasons, [(reason, 1)])
        elif not sample.images:
            _count(self.marks, ((mark[:60], 1) for mark in marks_in(sample.turns)))

    def add(self, other: "Notes") -> None:
        """Count the samples of another batch too."""
        for mine, theirs in ((self.keys, other.keys), (self.marks, other.marks), (self.reasons, other.reasons)):
            _count(mine, theirs.items())


def most_frequent(counter: Counter[str]) -> dict[str, int]:
    """As a dictionary, the most frequent first, equal ones by name."""
    return dict(sorted(counter.items(), key=lambda item: (-item[1], item[0])))


def _count(counter: Counter[str], found: Iterable[tuple[str, int]]) -> None:
    for name, number in found:
        counter[name if name in counter or len(counter) < MAX_NAMES else OTHERS] += number
