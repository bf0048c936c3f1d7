"""Chooses the samples of a store whose score is high enough, or the best share of them."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from alignkd.storage.errors import StoreError
from alignkd.storage.read.store import StoreReader
from alignkd.storage.tools.select.keeping import difference_scores, top_share, within
from alignkd.storage.tools.select.reference import reference_nlls
from alignkd.storage.tools.select.scan import Progress, advantage_scores, mean_nlls, rank_scores
from alignkd.storage.tools.select.selection import Selection, samples_hash

Criterion = Literal["difference", "visual-advantage", "label-rank", "perplexity"]
# a progress bar over so many records: what is done, and their number
Bar = Callable[[str, int], AbstractContextManager[Progress]]
# of these, low values are good
LOWEST_FIRST = ("perplexity",)


@dataclass(frozen=True, kw_only=True)
class Choice:
    """What is kept. Either `ratio`, or at least one of `least` and `most`.

    Attributes:
        by: what the score of a sample is.
        ratio: share of the samples with a score that is kept, the best first.
        least, most: bounds of the score.
        reference: of `difference`: a store of the same data, or a safetensors file.
        above: of `visual-advantage`: the score is the share of labels above this, not the mean.
        k: of `label-rank`.
        keep_unscored: keep samples without a score, such as those without images of `visual-advantage`.
    """

    by: Criterion
    ratio: float | None = None
    least: float | None = None
    most: float | None = None
    reference: Path | str | None = None
    above: float | None = None
    k: int | None = None
    keep_unscored: bool = False

    @property
    def settings(self) -> dict[str, Any]:
        """What decides the choice, without defaults; JSON-able."""
        values = {
            "ratio": self.ratio,
            "min": self.least,
            "max": self.most,
            "reference": None if self.reference is None else str(self.reference),
            "above": self.above,
            "k": self.k,
            "keep_unscored": self.keep_unscored or None,
        }
        return {name: value for name, value in values.items() if value is not None}


@dataclass(frozen=True, kw_only=True, eq=False)
class Chosen:
    """The result.

    Attributes:
        selection: the samples that are kept.
        scores: of every record, float64 [n]; NaN without a score.
        missing: ids of records that the reference lacks.
        by_source: source -> [kept, samples].
        labels, undecided: see `RankScores`; 0 for other criteria.
    """

    selection: Selection
    scores: NDArray[np.float64] = field(repr=False)
    missing: list[str] = field(default_factory=list)
    by_source: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    labels: int = 0
    undecided: int = 0


def choose(reader: StoreReader, choice: Choice, bar: Bar) -> Chosen:
    """Score every record and keep those that `choice` selects.

    Raises:
        StoreError: store or reference do not have what the criterion needs, or no sample has a score.
    """
    scores, missing, labels, undecided = _scores(reader, choice, bar)
    # by their number in the data set, so that equal scores are decided alike whatever the order in the store
    by_number = np.argsort(reader.dataset_index, kind="stable")
    scored = by_number[~np.isnan(scores[by_number])]
    if not len(scored):
        raise StoreError(f"store {reader.path}: none of {len(reader)} samples has a score by {choice.by}")
    positions = scored[kept_of(scores[scored], choice)]
    if choice.keep_unscored:
        positions = np.union1d(positions, np.flatnonzero(np.isnan(scores)))
    is_kept = np.zeros(len(reader), np.bool_)
    is_kept[positions] = True
    selection = Selection(
        samples_hash=samples_hash(reader),
        num_samples=len(reader),
        by=choice.by,
        settings=choice.settings,
        kept=np.sort(reader.dataset_index[is_kept]),
        store=str(reader.path),
        without_score=len(reader) - len(scored),
    )
    return Chosen(
        selection=selection,
        scores=scores,
        missing=[reader.ids[int(position)] for position in missing],
        by_source=_by_source(reader, is_kept),
        labels=labels,
        undecided=undecided,
    )


def kept_of(scores: NDArray[np.float64], choice: Choice) -> NDArray[np.int64]:
    """Places of the scores that are kept, int64, ascending; none of the scores is NaN."""
    if choice.ratio is not None:
        return top_share(-scores if choice.by in LOWEST_FIRST else scores, choice.ratio)
    least = -np.inf if choice.least is None else choice.least
    most = np.inf if choice.most is None else choice.most
    return within(scores, least=least, most=most)


def _scores(reader: StoreReader, choice: Choice, bar: Bar) -> tuple[NDArray[np.float64], NDArray[np.int64], int, int]:
    """Scores of all records, positions that the reference lacks, labels and undecided labels."""
    none = np.zeros(0, np.int64)
    if choice.by == "visual-advantage":
        with bar("visual advantage", len(reader)) as done:
            return advantage_scores(reader, above=choice.above, progress=done), none, 0, 0
    if choice.by == "label-rank":
        assert choice.k is not None
        with bar("ranks", len(reader)) as done:
            found = rank_scores(reader, k=choice.k, progress=done)
        return found.shares, none, found.labels, found.undecided
    with bar("teacher", len(reader)) as done:
        teacher = mean_nlls(reader, progress=done)
    if choice.by == "perplexity":
        return np.exp(np.minimum(teacher, 700.0)), none, 0, 0
    assert choice.reference is not None
    with bar("reference", len(reader)) as done:
        reference = reference_nlls(reader, choice.reference, done)
    return difference_scores(reference.mean_nll, teacher), reference.missing, 0, 0


def _by_source(reader: StoreReader, is_kept: NDArray[np.bool_]) -> dict[str, tuple[int, int]]:
    """Kept samples and samples of each data set; those that were added to one later belong to it."""
    found: dict[str, tuple[int, int]] = {}
    for number, name in enumerate(reader.sources):
        own = reader.source_of == number
        kept, total = found.get(name, (0, 0))
        found[name] = (kept + int(is_kept[own].sum()), total + int(own.sum()))
    return {name: counts for name, counts in found.items() if counts[1]}
