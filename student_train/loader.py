"""The stream of this rank's micro-batches: a pure function of the order, resumable at any optimiser step."""

from collections.abc import Iterator

from storage import SampleOrder
from student_train.batch import TrainBatch
from student_train.collate import collate
from student_train.config import TrainConfig
from student_train.dataset import CachedDataset
from student_train.errors import TrainError
from student_train.handoff_stream import FromWorkers
from student_train.ranks import Ranks
from student_train.stem_targets import StemLookup


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
