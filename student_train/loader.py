"""The stream of this rank's micro-batches: a pure function of the order, resumable at any optimiser step."""

import signal
from collections.abc import Iterator

from torch.utils.data import DataLoader, Dataset

from storage import SampleOrder
from student_train.batch import TrainBatch
from student_train.collate import collate
from student_train.config import TrainConfig
from student_train.dataset import CachedDataset
from student_train.errors import TrainError
from student_train.ranks import Ranks


class _MicroBatches(Dataset[TrainBatch | str]):
    """Micro-batch number -> batch; numbers count on through all optimiser steps."""

    def __init__(self, dataset: CachedDataset, order: SampleOrder, config: TrainConfig, ranks: Ranks) -> None:
        self.dataset, self.order, self.config, self.ranks = dataset, order, config, ranks

    def __getitem__(self, number: int) -> TrainBatch | str:
        step, part = divmod(number, self.config.accumulation_steps(self.ranks.world_size))
        mine = self.order.rank_slice(step, self.ranks.rank, self.ranks.world_size)
        positions = mine[part * self.config.micro_batch : (part + 1) * self.config.micro_batch]
        try:
            return collate(
                [self.dataset[int(position)] for position in positions],
                terms=self.config.losses.weights,
                attention_pairs=self.dataset.reader.manifest.codecs.attention_pairs,
            )
        except ValueError as error:
            return str(error)  # raised by the parent: a worker's exception would arrive as a page of traceback


def micro_batches(
    dataset: CachedDataset, order: SampleOrder, config: TrainConfig, ranks: Ranks, *, first_step: int
) -> Iterator[TrainBatch]:
    """This rank's micro-batches from optimiser step `first_step` to the last.

    Raises:
        TrainError: while iterating, when a sample cannot be used.
    """
    per_step = config.accumulation_steps(ranks.world_size)
    loader = DataLoader(
        _MicroBatches(dataset, order, config, ranks),
        batch_size=None,
        sampler=range(first_step * per_step, config.steps * per_step),
        num_workers=config.data_workers,
        worker_init_fn=_leave_signals_to_the_parent,
    )
    for batch in loader:
        if isinstance(batch, str):
            raise TrainError(batch)
        yield batch


def _leave_signals_to_the_parent(worker: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
