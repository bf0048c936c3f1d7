"""Tests with the teacher's own probabilities whether targets and labels belong to the same positions.

For every supervised position whose neighbour is supervised too, the log-probability of its label is compared with that
of the NEXT position's label and with that of the PREVIOUS one. Targets taken one
position too late predict the next label, targets taken one position too early the previous label.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from alignkd.storage.read.logprobs import Distribution, answers, entropies
from alignkd.storage.record.distributions import TruncatedLogits
from alignkd.storage.record.record import IGNORE_LABEL, Record
from alignkd.storage.schema.manifest import Manifest

# with fewer pairs of differing neighbours there is no verdict
MIN_PAIRS = 64
# standard errors of the mean difference
CLEAR = 4.0
# share of log V: a teacher with more entropy is near the uniform distribution, so that nothing can be expected of it;
# and if its perplexity of a neighbour's label is higher, it does not predict that label either
VAGUE = 0.75
# log-probability of impossible tokens: those outside the entries where the tail is empty
FLOOR = -50.0

Outcome = Literal["ok", "shifted", "implausible", "no opinion", "not enough data", "not stored"]


@dataclass(frozen=True, kw_only=True)
class LabelVerdict:
    """Whether the teacher's probabilities fit the labels.

    Attributes:
        outcome: `ok`: labels are clearly more probable at their own positions; `shifted`: at a neighbour's;
            `implausible`: neither, although the teacher is confident; `no opinion`: neither, because the teacher is
            near the uniform distribution.
        positions: number of positions whose label was looked up.
        perplexity: perplexity of the labels, exp of the mean negative log-probability.
        perplexity_next, perplexity_previous: perplexity of the neighbour's labels, at positions that have a neighbour.
        lead_next, lead_previous: mean log-probability of the label minus that of the neighbour's label, over pairs that
            differ, in standard errors.
        entropy: mean entropy of the teacher in nats (for `topk` and `nucleus` the largest possible with the tail).
        labels_not_kept: number of positions whose label is not among the kept entries (`topk`, `nucleus`), which is an
            error unless the tail is unknown: files of other tools may lack the label.
    """

    outcome: Outcome
    positions: int = 0
    perplexity: float | None = None
    perplexity_next: float | None = None
    perplexity_previous: float | None = None
    lead_next: float | None = None
    lead_previous: float | None = None
    entropy: float | None = None
    labels_not_kept: int = 0


class LabelScores:
    """Collects the log-probabilities of labels and of their neighbours' labels."""

    def __init__(self, manifest: Manifest) -> None:
        self.vocab_size = manifest.shapes.vocab_size
        self.stored = manifest.codecs.logits.kind != "none"
        self.may_lack_labels = manifest.codecs.logits.tail == "unknown"
        self._own: list[NDArray[np.float64]] = []
        self._entropy: list[NDArray[np.float64]] = []
        # (own, neighbour's) where neighbours differ, and the neighbour's wherever there is one
        self._pairs: dict[str, list[NDArray[np.float64]]] = {"next": [], "previous": []}
        self._neighbours: dict[str, list[NDArray[np.float64]]] = {"next": [], "previous": []}
        self.positions = self.labels_not_kept = 0

    def add(self, record: Record, found: Distribution) -> None:
        """Look up one record's labels; `found` is its distribution at supervised positions."""
        labels = record.labels[1:][record.labels[1:] != IGNORE_LABEL].astype(np.int64)
        if not len(labels):
            return
        places = np.arange(len(labels))
        own = answers(found, places, labels, self.vocab_size)
        if isinstance(found, TruncatedLogits):
            self.labels_not_kept += int(np.count_nonzero(~own.kept))
        floor = _floor(found)
        self._own.append(np.maximum(own.logprobs, floor[places]))
        self._entropy.append(entropies(found, self.vocab_size))
        self.positions += len(labels)
        adjacent = np.flatnonzero(np.diff(record.supervised_positions) == 1)
        for name, at, other in (("next", adjacent, adjacent + 1), ("previous", adjacent + 1, adjacent)):
            logprobs = np.maximum(answers(found, at, labels[other], self.vocab_size).logprobs, floor[at])
            differ = labels[at] != labels[other]
            self._neighbours[name].append(logprobs)
            self._pairs[name].append(np.stack([self._own[-1][at], logprobs], 1)[differ])

    def add_all(self, other: "LabelScores") -> None:
        """Add what another object has collected."""
        self._own += other._own
        self._entropy += other._entropy
        for name in self._pairs:
            self._pairs[name] += other._pairs[name]
            self._neighbours[name] += other._neighbours[name]
        self.positions += other.positions
        self.labels_not_kept += other.labels_not_kept

    def verdict(self) -> LabelVerdict:
        if not self.stored:
            return LabelVerdict(outcome="not stored")
        if not self.positions:
            return LabelVerdict(outcome="not enough data")
        leads = {
            name: lead([pairs[:, 0] - pairs[:, 1] for pairs in found]) for name, found in self._pairs.items() if found
        }
        enough = min((sum(map(len, pairs)) for pairs in self._pairs.values()), default=0) >= MIN_PAIRS
        entropy = float(np.concatenate(self._entropy).mean())
        return LabelVerdict(
            outcome=self._outcome(leads, entropy) if enough else "not enough data",
            positions=self.positions,
            perplexity=_perplexity(self._own),
            perplexity_next=_perplexity(self._neighbours["next"]),
            perplexity_previous=_perplexity(self._neighbours["previous"]),
            lead_next=leads.get("next"),
            lead_previous=leads.get("previous"),
            entropy=entropy,
            labels_not_kept=self.labels_not_kept,
        )

    def problems(self) -> list[str]:
        """One line for each problem."""
        found, verdict = [], self.verdict()
        if verdict.labels_not_kept and not self.may_lack_labels:
            found.append(
                f"logits lack the label at {verdict.labels_not_kept} of {verdict.positions} supervised positions, "
                "expected it among the kept entries of each: targets and labels do not belong together"
            )
        if verdict.outcome in ("shifted", "implausible"):
            found.append(f"{_blame(verdict)}; the teacher's targets were taken elsewhere, dump them again")
        return found

    def _outcome(self, leads: dict[str, float], entropy: float) -> Outcome:
        if min(leads.values()) > CLEAR:
            return "ok"
        guessing = self.vocab_size**VAGUE
        for name, found in leads.items():
            # without the second condition a teacher that predicts neither may seem to prefer one
            if found < -CLEAR and (_perplexity(self._neighbours[name]) or guessing) < guessing:
                return "shifted"
        return "no opinion" if entropy > VAGUE * np.log(self.vocab_size) else "implausible"


def _floor(found: Distribution) -> NDArray[np.float64]:
    """The lowest log-probability that a token of a position is given, float64 [N].

    With an unknown tail that of the least probable entry: a token outside the entries is no more probable.
    """
    floor = np.full(len(found) if isinstance(found, np.ndarray) else found.num_positions, FLOOR)
    if isinstance(found, TruncatedLogits) and found.tail_logmass is None and len(floor):
        floor = np.minimum.reduceat(found.logprobs.astype(np.float64), found.offsets[:-1])
    return floor


def _blame(verdict: LabelVerdict) -> str:
    neighbours = {"next": verdict.perplexity_next, "previous": verdict.perplexity_previous}
    leads = {"next": verdict.lead_next or 0.0, "previous": verdict.lead_previous or 0.0}
    name = min(leads, key=lambda which: leads[which])
    than = f"against {neighbours[name]:.4g} for the label of the {name} position"
    if verdict.outcome == "shifted":
        return f"logits are shifted by one: the teacher's perplexity is {verdict.perplexity:.4g} for the labels {than}"
    return (
        f"logits do not fit the labels: perplexity {verdict.perplexity:.4g} for the labels {than}, although the "
        f"teacher's entropy is only {verdict.entropy:.3g} nats"
    )


def lead(differences: Sequence[NDArray[np.float64]]) -> float:
    """Mean of the differences of all records, in standard errors; 0 without any.

    The standard error is that of independent pairs or that of independent records, whichever is larger, because tokens
    repeat within a record. The spread is at least one nat, so that few equal values do not count as certainty.

    Args:
        differences: of each record, the label's log-probability minus that of a neighbour's label, in nats.
    """
    all_pairs = np.concatenate(differences)
    if not len(all_pairs):
        return 0.0
    mean = all_pairs.mean()
    of_pairs = max(float(all_pairs.std()), 1.0) * np.sqrt(len(all_pairs))
    of_records = np.sqrt(sum(float((found - mean).sum()) ** 2 for found in differences))
    return float(mean * len(all_pairs) / max(of_pairs, float(of_records)))


def _perplexity(parts: Sequence[NDArray[np.float64]]) -> float | None:
    values = np.concatenate([np.empty(0), *parts])
    return float(np.exp(-values.mean())) if len(values) else None
