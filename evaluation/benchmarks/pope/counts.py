"""Right and wrong answers of one category of POPE, and the ratios of them."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Counts:
    """Counts of a category; yes is the positive class.

    Attributes:
        samples: number of answers.
        said_yes: number of answers that are read as yes.
        tp, fp, tn, fn: pairs of an answer and a label.
    """

    samples: int
    said_yes: int
    tp: int
    fp: int
    tn: int
    fn: int

    @classmethod
    def of(cls, answers: Sequence[bool], labels: Sequence[bool]) -> "Counts":
        """Pair answers and labels by position; what is longer is cut for the pairs only."""
        pairs = list(zip(answers, labels, strict=False))
        return cls(
            samples=len(answers),
            said_yes=sum(answers),
            tp=pairs.count((True, True)),
            fp=pairs.count((True, False)),
            tn=pairs.count((False, False)),
            fn=pairs.count((False, True)),
        )

    @property
    def accuracy(self) -> float:
        """Share of right pairs."""
        return (self.tp + self.tn) / (self.tp + self.tn + self.fp + self.fn)

    @property
    def precision(self) -> float:
        """Share of right pairs among those answered yes; 0 if there is none."""
        return self.tp / (self.tp + self.fp) if self.tp else 0.0

    @property
    def recall(self) -> float:
        """Share of pairs answered yes among those labelled yes; 0 if there is none."""
        return self.tp / (self.tp + self.fn) if self.tp else 0.0

    @property
    def f1(self) -> float:
        """Harmonic mean of precision and recall; 0 if no answer is a right yes."""
        return 2 * self.precision * self.recall / (self.precision + self.recall) if self.tp else 0.0

    def as_json(self) -> dict[str, object]:
        """Values for JSON, under the names of the original."""
        return {
            "samples": self.samples,
            "TP": self.tp,
            "FP": self.fp,
            "TN": self.tn,
            "FN": self.fn,
            "accuracy": self.accuracy,
            "precision": self.precision,
            "recall": self.recall,
            "f1": self.f1,
            "yes_ratio": self.said_yes / self.samples,
        }
