"""The stream of one rank's micro-batches: a pure function of order and lengths, resumable at any optimiser step."""

from collections.abc import Callable, Collection, Iterator

import numpy as np
from numpy.typing import NDArray

from alignkd.storage.read.pairs import Pairs
from alignkd.student_train.data.attention_source import ChosenAttention
from alignkd.student_train.data.batch import TrainBatch
from alignkd.student_train.data.collate import collate
from alignkd.student_train.data.division import Divisions
from alignkd.student_train.data.handoff.stream import FromWorkers
from alignkd.student_train.data.samples.kept_samples import KEPT_BYTES, KeptSamples, Samples
from alignkd.student_train.data.samples.pairs import pairs_in_batch
from alignkd.student_train.data.stem_targets import StemLookup
from alignkd.student_train.distributed.ranks import Ranks
from alignkd.student_train.errors import TrainError


def load_batch(
    samples: Samples,
    positions: NDArray[np.int64],
    *,
    targets: Collection[str],
    stem: StemLookup | None,
    attention: ChosenAttention | None = None,
    pairs: Pairs | None = None,
    high_share: float | None = None,
) -> TrainBatch:
    """The samples at these positions as one batch; `targets`, `stem`, `attention` and `high_share` as of `collate`.

    Args:
        pairs: of all samples; None: they have no rejected answer.

    Raises:
        TrainError: a sample cannot be used.
    """
    try:
        return collate(
            [samples[int(position)] for position in positions],
            targets=targets,
            attention_pairs=attention or samples.reader.manifest.codecs.attention_pairs,
            stem=stem,
            pairs=None if pairs is None else pairs_in_batch(positions, pairs),
            high_share=high_share,
        )
    except ValueError as error:
        raise TrainError(str(error)) from error


def load_micro_batches(
    samples: Samples,
    divisions: Divisions,
    ranks: Ranks,
    *,
    steps: range,
    targets: Collection[str],
    stem: StemLookup | None = None,
    attention: ChosenAttention | None = None,
    pairs: Pairs | None = None,
    workers: int = 0,
    high_share: float | None = None,
) -> Iterator[TrainBatch]:
    """This rank's micro-batches of the optimiser steps `steps`, the same for any number of workers.

    Data workers are forked by this call. Make it before there is a model and optimiser state: they would keep both.
    Without workers, samples that come more than once are kept in memory if all fit (`KeptSamples`).

    Args:
        divisions: which samples each micro-batch has.
        targets: which targets the losses need.
        stem: computes the targets that are not stored.
        attention: the attention that batches carry; None: the first layer's.
        pairs: see `load_batch`.
        workers: processes that prepare batches; 0 prepares them in this process.
        high_share: as of `collate`.

    Raises:
        TrainError: while iterating, if a sample cannot be used or a worker was killed.
    """
    if not workers and len(steps) * divisions.order.global_batch > min(len(samples), divisions.order.num_samples):
        samples = KeptSamples(samples, KEPT_BYTES // ranks.world_size)

    def make(positions: NDArray[np.int64] | None) -> TrainBatch | None:
        """The micro-batch of these samples."""
        if positions is None:
            return None
        return load_batch(
            samples,
            positions,
            targets=targets,
            stem=stem,
            attention=attention,
            pairs=pairs,
            high_share=high_share,
        )

    # The samples are looked up in this process: an order whose weights change is not the one that workers inherited.
    wanted = divisions.positions(steps, ranks.rank)
    return KnownBatches(make, wanted, workers) if workers else _made(make, wanted)


class KnownBatches(FromWorkers):
    """Micro-batches that workers prepare; those that were requested before their samples were known are passed over."""

    def __next__(self) -> TrainBatch:
        while (batch := super().__next__()) is None:
            continue
        found: TrainBatch = batch
        return found


def _made(
    make: Callable[[NDArray[np.int64] | None], TrainBatch | None], wanted: Iterator[NDArray[np.int64] | None]
) -> Iterator[TrainBatch]:
    """Each micro-batch when it is requested; its samples are known then."""
    for positions in wanted:
        batch = make(positions)
        assert batch is not None, "the weights of this interval are not measured yet"
        yield batch
