"""Errors of a store's targets: measured against a store of exact ones, or bounds that the codecs state."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from alignkd.storage.read.logprobs import distribution_of, open_lm_head
from alignkd.storage.read.store import StoreReader
from alignkd.storage.record.distributions import HiddenStates, TruncatedLogits
from alignkd.storage.record.encoded import EncodedArray, as_float32, error_bound
from alignkd.storage.record.record import Record, Target
from alignkd.storage.tools.compare.diff import FieldDifference, compare_fields
from alignkd.storage.tools.compare.matching import match_records
from alignkd.storage.tools.verify.advantage import AdvantageSums, advantage_sums
from alignkd.storage.tools.verify.attention_sums import AttentionSums, record_sums
from alignkd.storage.tools.verify.label_shift import LabelScores, LabelVerdict
from alignkd.storage.tools.verify.sequence import SequenceFigures, SequenceSums


@dataclass(frozen=True, kw_only=True)
class StatedBound:
    """The error bound of one field, computed from the stored values of the sampled records.

    Attributes:
        largest, mean: largest and mean bound on |decoded - exact| over the values.
        relative_l2: norm of the bounds over the norm of the decoded values, a bound on the relative error.
    """

    field: str
    codec: str
    largest: float
    mean: float
    relative_l2: float


@dataclass(frozen=True, kw_only=True)
class StatedErrors:
    """Figures of the sampled records of one store.

    Attributes:
        records: number of sampled records.
        bounds: error bound of every target.
        attention: sums of attention rows.
        labels: whether the teacher's probabilities fit the labels; `topk` and `nucleus` keep each label.
        advantage: visual advantage; without positions where the store has no counterfactual pass.
        sequences: the teacher's perplexity of whole samples; without records where the store lacks the target.
        largest_mass_error: largest |mass of entries and tail - 1|; None for other logits.
    """

    records: int
    bounds: list[StatedBound]
    attention: AttentionSums
    labels: LabelVerdict
    advantage: AdvantageSums
    sequences: SequenceFigures
    largest_mass_error: float | None


def sampled_positions(reader: StoreReader, count: int) -> list[int]:
    """Up to `count` positions, evenly spaced over the store."""
    if not len(reader):
        return []
    chosen = np.unique(np.linspace(0, len(reader) - 1, min(count, len(reader))).astype(np.int64))
    return [int(position) for position in chosen]


def stated_errors(
    reader: StoreReader, positions: list[int], progress: Callable[[int], object] = lambda records: None
) -> StatedErrors:
    """Compute bounds and identities; no measured errors.

    Raises:
        CorruptStoreError: a record is damaged.
    """
    lm_head = open_lm_head(reader.files, reader.manifest)
    attention, labels, masses = AttentionSums(), LabelScores(reader.manifest), []
    advantage, sequences, sums = AdvantageSums(), SequenceSums(), dict[str, _BoundSum]()
    for position in positions:
        record = reader[position]
        for name, target in targets_of(record):
            sums.setdefault(name, _BoundSum()).add(target)
        attention = attention + record_sums(record, reader.manifest)
        advantage = advantage + advantage_sums(record)
        sequences.add(record)
        if (found := distribution_of(record.logits, lm_head)) is not None:
            labels.add(record, found)
        if isinstance(record.logits, TruncatedLogits):
            masses.append(_mass_error(record.logits))
        progress(1)
    return StatedErrors(
        records=len(positions),
        bounds=[total.result(name) for name, total in sums.items()],
        attention=attention,
        labels=labels.verdict(),
        advantage=advantage,
        sequences=sequences.figures(),
        largest_mass_error=max(masses, default=None),
    )


def measured_errors(
    reader: StoreReader, exact: StoreReader, count: int, progress: Callable[[int], object] = lambda records: None
) -> list[FieldDifference]:
    """Compare up to `count` records that both stores have, evenly spaced; norms are those of the exact store.

    Each field has the largest difference, the relative L2 difference, and the number of records in which it exceeds the
    sum of the two codecs' error bounds.

    Raises:
        CorruptStoreError: a record is damaged.
    """
    pairs = match_records(exact, reader).pairs
    chosen = pairs[np.unique(np.linspace(0, max(len(pairs) - 1, 0), min(count, len(pairs))).astype(np.int64))]
    found = compare_fields(exact, reader, chosen, progress=progress)
    return [difference for difference in found if difference.max_abs is not None]


def targets_of(record: Record) -> Iterator[tuple[str, Target]]:
    """The float targets of a record with their names, those of its logits included; one for each image of the record
    where a target belongs to an image."""
    for name, target in (("attention", record.attention), ("vision_top_embeddings", record.vision_top_embeddings)):
        if target is not None:
            yield name, target
    for target in record.vision_embeddings or ():
        yield "vision_embeddings", target
    for name, values in (
        ("logits", record.logits),
        *((f"more.{name}", values) for name, values in record.more.items()),
    ):
        if isinstance(values, TruncatedLogits):
            yield f"{name}.logprobs", values.logprobs
        elif isinstance(values, HiddenStates):
            yield f"{name}.hidden_states", values.states
        elif isinstance(values, np.ndarray | EncodedArray):
            yield name, values


class _BoundSum:
    def __init__(self) -> None:
        self.codec, self.count = "", 0
        self.largest = self.total = self.squares = self.norm = 0.0

    def add(self, target: Target) -> None:
        bound, values = error_bound(target).astype(np.float64), as_float32(target).astype(np.float64)
        self.codec = target.codec if isinstance(target, EncodedArray) else str(target.dtype)
        self.count += bound.size
        self.largest = max(self.largest, float(bound.max(initial=0.0)))
        self.total += float(bound.sum())
        self.squares += float((bound**2).sum())
        self.norm += float((values**2).sum())

    def result(self, name: str) -> StatedBound:
        return StatedBound(
            field=name,
            codec=self.codec,
            largest=self.largest,
            mean=self.total / max(self.count, 1),
            relative_l2=float(np.sqrt(self.squares / self.norm)) if self.norm else 0.0,
        )


def _mass_error(logits: TruncatedLogits) -> float:
    return float(np.abs(logits.masses() - 1).max(initial=0.0))
