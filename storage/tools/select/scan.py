"""One score for each record of a store, from the few targets that it needs. Shards are read one after the other."""

import math
from collections.abc import Callable, Collection
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from alignkd.storage.errors import StoreError
from alignkd.storage.layouts.rows import RecordCodec
from alignkd.storage.read.logprobs import distribution_of, open_lm_head
from alignkd.storage.read.shard import OpenShard
from alignkd.storage.read.store import StoreReader
from alignkd.storage.record.encoded import as_float32
from alignkd.storage.record.part import RecordPart
from alignkd.storage.schema.targets.counterfactual import ADVANTAGE, stores_advantage
from alignkd.storage.schema.targets.sequence import SEQUENCE_LOGPROB, has_sequence_logprob
from alignkd.storage.tools.select.label_nll import check_gives_nll, mean_nll
from alignkd.storage.tools.select.label_rank import label_ranks

Progress = Callable[[int], object]


@dataclass(frozen=True, kw_only=True, eq=False)
class RankScores:
    """Labels that are among the k most probable tokens.

    Attributes:
        shares: share of each record's labels, float64 [n]; NaN for a record without labels.
        labels: number of labels.
        undecided: labels that may or may not be among them, because only bounds of their rank are known. They count as
            not being among them.
    """

    shares: NDArray[np.float64]
    labels: int
    undecided: int


def nothing(done: int) -> None:
    """No progress is shown."""


def mean_nlls(
    reader: StoreReader, positions: NDArray[np.int64] | None = None, progress: Progress = nothing
) -> NDArray[np.float64]:
    """Mean negative log-probability of a label in nats of each record, float64; NaN for a record without labels.

    Args:
        positions: of the records, ascending, int64; None: all.
        progress: called with the number of records done since the last call.

    Raises:
        StoreError: it does not follow from what the store keeps; the message has the next step.
        CorruptStoreError: a shard is damaged.
    """
    where = f"store {reader.path}"
    check_gives_nll(reader.manifest, where)
    stored = has_sequence_logprob(reader.manifest)
    lm_head = None if stored else open_lm_head(reader.files, reader.manifest)
    if not stored and reader.manifest.codecs.logits.kind == "hidden" and lm_head is None:
        raise StoreError(f"{where}: logits.kind is hidden, but the teacher's lm_head is not attached; dump it again")

    def score(part: RecordPart) -> float:
        return mean_nll(part, reader.manifest, lm_head)

    names = [SEQUENCE_LOGPROB] if stored else []
    return _scores(reader, score, positions, progress, more=names, logits=not stored)


def advantage_scores(
    reader: StoreReader, *, above: float | None = None, progress: Progress = nothing
) -> NDArray[np.float64]:
    """Visual advantage of each record, float64 [n]: its mean over the labels in nats, or a share of the labels.

    Args:
        above: the score is the share of labels whose visual advantage exceeds this, in place of the mean.
        progress: as for `mean_nlls`.

    Returns:
        NaN for a record without images or without labels.

    Raises:
        StoreError: the store has no counterfactual pass.
    """
    if not stores_advantage(reader.manifest):
        raise StoreError(
            f"store {reader.path}: keeps no {ADVANTAGE}; dump the data with store.counterfactual, see "
            "docs/counterfactual.md"
        )

    def score(part: RecordPart) -> float:
        if (stored := part.more.get(ADVANTAGE)) is None or not len(part.labels):
            return math.nan
        values = as_float32(stored).astype(np.float64)  # type: ignore[arg-type]  # kind `values`
        return float(values.mean() if above is None else np.mean(values > above))

    return _scores(reader, score, None, progress, more=[ADVANTAGE])


def rank_scores(reader: StoreReader, *, k: int, progress: Progress = nothing) -> RankScores:
    """The share of each record's labels that are among the k tokens that are most probable for the teacher.

    Raises:
        StoreError: the store's logits do not order the tokens.
    """
    kind, where = reader.manifest.codecs.logits.kind, f"store {reader.path}"
    if kind in ("none", "sampled"):
        raise StoreError(
            f"{where}: logits of kind {kind} do not order the tokens; dump the data with store.logits of kind topk, "
            "nucleus, hidden or full"
        )
    lm_head, top_k = open_lm_head(reader.files, reader.manifest), reader.manifest.codecs.logits.top_k
    counts = np.zeros(2, np.int64)

    def score(part: RecordPart) -> float:
        found = distribution_of(part.logits, lm_head)
        if found is None:
            raise StoreError(
                f"{where}: logits.kind is hidden, but the teacher's lm_head is not attached; dump it again"
            )
        ranks = label_ranks(found, part.labels, top_k)
        counts[:] += len(part.labels), int(ranks.undecided(k).sum())
        return float(ranks.within(k).mean()) if len(part.labels) else math.nan

    shares = _scores(reader, score, None, progress, logits=True)
    return RankScores(shares=shares, labels=int(counts[0]), undecided=int(counts[1]))


def _scores(
    reader: StoreReader,
    score: Callable[[RecordPart], float],
    positions: NDArray[np.int64] | None,
    progress: Progress,
    *,
    more: Collection[str] = (),
    logits: bool = False,
) -> NDArray[np.float64]:
    """`score` of each record; the shards are opened one by one and closed again."""
    codec, start, found = RecordCodec(reader.manifest), 0, list[float]()
    for commit in reader.commits:
        stop = start + commit.num_records
        wanted = range(commit.num_records)
        if positions is not None:
            wanted = (positions[(positions >= start) & (positions < stop)] - start).tolist()
        if len(wanted):
            found += _of_shard(OpenShard(reader.files, reader.manifest, codec, commit), wanted, score, more, logits)
            progress(len(wanted))
        start = stop
    return np.array(found, np.float64)


def _of_shard(
    shard: OpenShard,
    numbers: Collection[int],
    score: Callable[[RecordPart], float],
    more: Collection[str],
    logits: bool,
) -> list[float]:
    found = []
    for number in numbers:
        try:
            found.append(score(shard.part(number, logits=logits, more=more)))
        except StoreError as error:
            raise type(error)(f"shard {shard.commit.shard}, record {number}: {error}") from error
    return found
