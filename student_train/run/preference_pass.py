"""The pass without gradient that finds the means over the global batch, before a step of several micro-batches.

It runs the student's forward pass over every micro-batch of the step, without the other terms and without dropout. A
step of `kto_pair` with several micro-batches or ranks therefore costs one forward pass more.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice

import torch

from alignkd.student_train.data.batch import TrainBatch
from alignkd.student_train.distributed.ranks import Ranks
from alignkd.student_train.objective.objective import DistilledStudent
from alignkd.student_train.objective.preference.settings import PREFERENCE, statistics_of
from alignkd.student_train.objective.terms import TERMS


def with_statistics(
    student: DistilledStudent, batches: Iterator[TrainBatch], ranks: Ranks, *, micro_batches: int
) -> Iterator[TrainBatch]:
    """The micro-batches of a step, after the student has the statistics of all of them; called by ALL ranks.

    Args:
        micro_batches: those of the step; they are in memory together.
    """
    settings = student.preference
    student.statistics = None
    if settings is None or not settings.needs_statistics or micro_batches * ranks.world_size == 1:
        return batches
    own = list(islice(batches, micro_batches))
    with _preference_alone(student):
        found = [student(batch.to(ranks.device))[PREFERENCE].ratios_G2 for batch in own]
    ratios = [one for one in found if one is not None]
    student.statistics = statistics_of(torch.cat(ratios), settings, ranks.sum)
    return iter(own)


@contextmanager
def _preference_alone(student: DistilledStudent) -> Iterator[None]:
    """The student without gradients and dropout, with this term only."""
    modes = [(module, module.training) for module in student.modules()]
    losses, stem = student.losses, student.stem
    # nor does the host wait for a matching of vision tokens
    alone = {**dict.fromkeys(TERMS, 0.0), PREFERENCE: 1.0, "vision_matching": "place"}
    student.losses = losses.model_copy(update=alone)
    student.stem = None
    student.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        student.losses, student.stem = losses, stem
        for module, training in modes:
            module.training = training
