"""Reads batches with data workers until it is killed; the workers end up in the middle of a sample that never comes.

Arguments: store, student, folder with CLIP's configuration, images. Prints the workers' process ids once a batch came.
"""

import multiprocessing
import sys
import time
from pathlib import Path
from typing import Any

import torch

from alignkd.storage import SampleOrder, StoreReader
from alignkd.student_train.config import TrainConfig
from alignkd.student_train.data.division import Divisions
from alignkd.student_train.data.samples.dataset import CachedDataset
from alignkd.student_train.data.samples.training_set import TrainingSet
from alignkd.student_train.distributed.ranks import Ranks
from alignkd.student_train.run.plan import micro_batches
from alignkd.vlm.families.mobilevlm.weights.checkpoint import load_preparation


class Hanging(CachedDataset):
    """A file system that stops answering after a few samples."""

    reads = 0

    def __getitem__(self, position: int) -> Any:
        self.reads += 1
        if self.reads > 4:
            time.sleep(7200)
        return super().__getitem__(position)


def main(store: Path, student: Path, clip: Path, images: Path) -> None:
    builder = load_preparation(student, template="v1", vision_config=clip)
    dataset = Hanging(StoreReader(store), builder, images)
    config = TrainConfig(output=Path(), steps=50, micro_batch=2, data_workers=2)
    ranks = Ranks(0, 1, torch.device("cpu"))
    divisions = Divisions(SampleOrder(len(dataset), 0, 2), dataset.lengths, config.micro_batch_limit, world_size=1)
    batches = micro_batches(TrainingSet([dataset]), divisions, config, ranks, first_step=0)
    next(batches)
    print(*(child.pid for child in multiprocessing.active_children()), flush=True)
    for _ in batches:
        pass


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
