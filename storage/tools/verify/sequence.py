"""Log-probabilities of whole samples: the teacher's perplexity of each, and whether they fit the stored logits."""

from dataclasses import dataclass

import numpy as np

from alignkd.storage.read.logprobs import answers
from alignkd.storage.record.distributions import TruncatedLogits
from alignkd.storage.record.encoded import as_float32, error_bound
from alignkd.storage.record.record import IGNORE_LABEL, Record, Target
from alignkd.storage.schema.targets.sequence import SEQUENCE_LOGPROB

# a sum of log-probabilities may exceed 0 by rounding, in nats at each position
ROUNDING = 1e-3
QUANTILES = (0.0, 0.25, 0.5, 0.75, 1.0)
# exp(700) is finite in float64
_LARGEST_NLL = 700.0


@dataclass(frozen=True, kw_only=True)
class SequenceFigures:
    """The teacher's perplexity, exp of the mean negative log-probability of a label, over records with labels.

    Attributes:
        records: number of records that hold the target and supervise a position.
        positions: their supervised positions.
        mean_nll: negative log-probability of a label in nats, mean over positions; None without records.
        perplexities: smallest, quartiles and largest of the records; empty without records.
        problems: one line for each record whose value does not fit; at most 5.
    """

    records: int = 0
    positions: int = 0
    mean_nll: float | None = None
    perplexities: tuple[float, ...] = ()
    problems: tuple[str, ...] = ()

    @property
    def perplexity(self) -> float | None:
        """exp of `mean_nll`; None without records."""
        return None if self.mean_nll is None else perplexity(self.mean_nll)


class SequenceSums:
    """Collects the figures of records."""

    MOST_PROBLEMS = 5

    def __init__(self) -> None:
        self._total, self._positions = 0.0, 0
        self._means: list[float] = []
        self._problems: list[str] = []

    def add(self, record: Record) -> None:
        """Count one record; a record without the target is ignored."""
        value, positions = sequence_logprob_of(record), len(record.supervised_positions)
        if value is None:
            return
        problem = _problem(record, value)
        if problem is not None and len(self._problems) < self.MOST_PROBLEMS:
            self._problems.append(f"record {record.id!r} (index {record.index}): {SEQUENCE_LOGPROB} {problem}")
        if positions:
            self._total, self._positions = self._total - value, self._positions + positions
            self._means.append(-value / positions)

    def figures(self) -> SequenceFigures:
        """The figures of all records so far."""
        if not self._means:
            return SequenceFigures(problems=tuple(self._problems))
        return SequenceFigures(
            records=len(self._means),
            positions=self._positions,
            mean_nll=self._total / self._positions,
            perplexities=tuple(perplexity(float(nll)) for nll in np.quantile(self._means, QUANTILES)),
            problems=tuple(self._problems),
        )


def sequence_logprob_of(record: Record) -> float | None:
    """The record's `sequence_logprob` in nats; None if its store does not have the target."""
    stored: Target | None = record.more.get(SEQUENCE_LOGPROB)  # type: ignore[assignment]
    return None if stored is None else float(as_float32(stored)[0])


def perplexity(nll: float) -> float:
    """exp of a negative log-probability in nats per label."""
    return float(np.exp(min(nll, _LARGEST_NLL)))


def _problem(record: Record, value: float) -> str | None:
    """Why the value cannot be the sum of the labels' log-probabilities; None if it can."""
    positions = len(record.supervised_positions)
    if value > ROUNDING * positions:
        return f"is {value:.6g}, expected at most 0: a sum of {positions} log-probabilities"
    if not isinstance(record.logits, TruncatedLogits):
        return None
    labels = record.labels[1:][record.labels[1:] != IGNORE_LABEL].astype(np.int64)
    found = answers(record.logits, np.arange(positions), labels, 1 << 22)
    if not found.kept.all():
        return None  # the check of labels reports it
    narrow = record.logits.logprobs.dtype == np.float16
    rounded = found.logprobs.astype(np.float16) if narrow else found.logprobs.astype(np.float32)
    allowed = float(error_bound(rounded).sum()) + ROUNDING * (1 + positions)
    total = float(found.logprobs.sum())
    if abs(total - value) > allowed:
        return f"is {value:.6g}, the stored logits give {total:.6g} for the labels: they are of different passes"
    return None
