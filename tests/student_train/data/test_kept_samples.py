"""Samples that are kept in memory are those of the store, in every pass; large data sets are not kept."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from batch_bytes import bytes_of

from alignkd.storage import Record, SampleOrder, StoreReader
from alignkd.student_train.config import TrainConfig
from alignkd.student_train.data import loader
from alignkd.student_train.data.batch import TrainBatch
from alignkd.student_train.data.division import Divisions
from alignkd.student_train.data.samples.dataset import CachedDataset
from alignkd.student_train.data.samples.kept_samples import KeptSamples
from alignkd.student_train.data.samples.training_set import TrainingSet
from alignkd.student_train.distributed.ranks import Ranks
from alignkd.student_train.run.plan import micro_batches
from alignkd.vlm.families.mobilevlm.inputs.preparation import MobileVLMPreparation
from alignkd.vlm.inputs.examples import Example


class Counted(CachedDataset):
    """Counts how often each sample is prepared."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.prepared: Counter[int] = Counter()

    def __getitem__(self, position: int) -> tuple[Example, Record]:
        self.prepared[position] += 1
        return super().__getitem__(position)


@pytest.fixture
def dataset(many_store: Path, student_builder: MobileVLMPreparation, images_folder: Path) -> Counted:
    return Counted(StoreReader(many_store), student_builder, images_folder)


def batches_of(dataset: CachedDataset, *, steps: int, workers: int = 0, world_size: int = 1) -> Iterator[TrainBatch]:
    config = TrainConfig(output=Path(), steps=steps, micro_batch=2, global_batch=2 * world_size, data_workers=workers)
    order = SampleOrder(len(dataset), config.seed, config.global_batch_size(world_size))
    ranks = Ranks(0, world_size, torch.device("cpu"))
    divisions = Divisions(order, dataset.lengths, config.micro_batch_limit, world_size)
    return micro_batches(TrainingSet([dataset]), divisions, config, ranks, first_step=0)


def steps_of(dataset: CachedDataset, passes: int) -> int:
    return passes * len(dataset) // 2


def test_batches_of_every_pass_equal_those_of_the_store(dataset: Counted, monkeypatch: pytest.MonkeyPatch) -> None:
    steps = steps_of(dataset, passes=3)
    kept = list(batches_of(dataset, steps=steps))
    assert dataset.prepared == Counter(range(len(dataset)))
    monkeypatch.setattr(loader, "KEPT_BYTES", 0)
    read = list(batches_of(dataset, steps=steps))
    assert dataset.prepared.total() == len(dataset) + 2 * steps
    assert len(kept) == len(read) == steps
    assert [bytes_of(batch) for batch in kept] == [bytes_of(batch) for batch in read]


def test_what_a_caller_writes_changes_nothing(dataset: Counted) -> None:
    samples = KeptSamples(dataset)
    expected = dataset[0]
    for _ in range(3):
        example, record = samples[0]
        assert (example.input_ids == expected[0].input_ids).all()
        assert (record.labels == expected[1].labels).all()
        example.input_ids[:], record.labels[:] = 7, 7


def test_data_sets_over_the_limit_are_dropped(dataset: Counted) -> None:
    samples = KeptSamples(dataset, limit=1 << 30)
    for position in range(len(dataset)):
        assert samples.num_kept == position
        samples[position]
    size = samples.num_bytes
    within, beyond = KeptSamples(dataset, limit=2 * size), KeptSamples(dataset, limit=size // 2)
    for position in [*range(len(dataset))] * 2:
        beyond[position]
    assert beyond.num_kept is None and beyond.num_bytes == 0
    for position in [*range(len(dataset))] * 2:
        within[position]
    assert within.num_kept == len(dataset) and within.num_bytes == size


def test_one_pass_keeps_nothing(dataset: Counted, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> KeptSamples:
        raise AssertionError("samples of one pass are kept")

    monkeypatch.setattr(loader, "KeptSamples", refuse)
    assert len(list(batches_of(dataset, steps=steps_of(dataset, passes=1)))) == len(dataset) // 2
    with pytest.raises(AssertionError, match="one pass"):
        batches_of(dataset, steps=steps_of(dataset, passes=1) + 1)


def test_processes_of_a_run_share_the_limit(dataset: Counted, monkeypatch: pytest.MonkeyPatch) -> None:
    limits = []
    monkeypatch.setattr(loader, "KeptSamples", lambda samples, limit: limits.append(limit) or samples)
    for world_size in (1, 4):
        batches_of(dataset, steps=100, world_size=world_size)
    assert limits == [1 << 30, 1 << 28]
