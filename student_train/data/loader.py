"""The stream of this rank's micro-batches: a pure function of the order, resumable at any optimiser step."""

from collections.abc import Iterator

from alignkd.storage import SampleOrder
from alignkd.student_train.config import TrainConfig
from alignkd.student_train.data.batch import TrainBatch
from alignkd.student_train.data.collate import collate
from alignkd.student_train.data.dataset import CachedDataset
from alignkd.student_train.data.handoff.stream import FromWorkers
from alignkd.student_train.data.stem_targets import StemLookup
from alignkd.student_train.distributed.ranks import Ranks
from alignkd.student_train.errors import TrainError


def micro_batches(
    dataset: CachedDataset,
    order: SampleOrder,
    config: TrainConfig,
    ranks: Ranks,
    *,
    first_step: int,
    stem: StemLookup | None = None,
) -> Iterator[TrainBatch]:
    """This rank's micro-batches from optimiser step `first_step` to the last, the same for any `data_workers`.

    Data workers are forked by this call: before a model and optimiser state are there, which they would keep.

    Args:
        stem: gives the targets that are not stored.

    Raises:
        TrainError: while iterating, when a sample cannot be used or a worker was killed.
    """
    per_step = config.accumulation_steps(ranks.world_size)

    def make(number: int) -> TrainBatch:
        """Micro-batch of that number; numbers count on through all optimiser steps."""
        step, part = divmod(number, per_step)
        mine = order.rank_slice(step, ranks.rank, ranks.world_size)
        positions = mine[part * config.micro_batch : (part + 1) * config.micro_batch]
        try:
            return collate(
                [dataset[int(position)] for position in positions],
                terms=config.losses.weights,
                attention_pairs=dataset.reader.manifest.codecs.attention_pairs,
                stem=stem,
            )
        except ValueError as error:
            raise TrainError(str(error)) from error

    numbers = range(first_step * per_step, config.num_steps * per_step)
    return FromWorkers(make, numbers, config.data_workers) if config.data_workers else map(make, numbers)
