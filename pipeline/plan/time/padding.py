"""Padded / real positions of both phases, from the lengths of the data and the batches that are made of them."""

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from alignkd.pipeline.plan.disk.samples import SampleRows
from alignkd.storage import SampleOrder
from alignkd.storage.read.pairs import Pairs
from alignkd.student_train.config import TrainConfig
from alignkd.student_train.data.division import Divisions
from alignkd.student_train.data.samples.pairs import PairedOrder
from alignkd.teacher_dump.bucketing import least_work_buckets
from alignkd.teacher_dump.settings.teacher import TeacherConfig

# a mean over so many steps has an error below a percent
STEPS = 64


def training_padding(
    train: TrainConfig, lengths: NDArray[np.int64], order: SampleOrder | None = None, pairs: Pairs | None = None
) -> float:
    """Padded / real positions of the first steps on one device.

    Args:
        lengths: positions of each sample.
        order: of the samples; None draws them.
        pairs: pairs of them that are in one micro-batch; None: there are none.
    """
    order = order or SampleOrder(len(lengths), train.seed, train.global_batch_size(1))
    if pairs is not None:
        order = PairedOrder(order, pairs)
    divisions = Divisions(order, lengths, train.micro_batch_limit, world_size=1, pairs=pairs)
    padded = real = 0
    for step in range(STEPS if train.steps is None else min(STEPS, train.steps)):
        division = divisions.of_step(step)
        padded += division.padded_positions
        real += int(lengths[division.samples].sum())
    return padded / max(1, real)


def dump_padding(teacher: TeacherConfig, rows: SampleRows) -> float:
    """Padded / real positions of the teacher pass over the counted shards."""
    padded = 0
    for lengths in _windows(rows, teacher.window):
        buckets = least_work_buckets(lengths, token_budget=teacher.token_budget, max_samples=teacher.batch)
        padded += sum(len(bucket) * max(lengths[number] for number in bucket) for bucket in buckets)
    return padded / max(1, int(rows.length.sum()))


def _windows(rows: SampleRows, window: int) -> Iterable[list[int]]:
    for shard in np.unique(rows.shard):
        lengths = rows.length[rows.shard == shard].tolist()
        yield from (lengths[start : start + window] for start in range(0, len(lengths), window))
