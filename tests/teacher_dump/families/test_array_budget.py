"""Image arrays beyond a bound are dropped and made again; nothing that is stored depends on the bound."""

from functools import partial
from pathlib import Path

import pytest
import tiny_data
import tiny_families

from alignkd.teacher_dump import dump as dump_module
from alignkd.teacher_dump import preparation as preparation_module
from alignkd.teacher_dump.array_budget import ArrayBudget
from alignkd.teacher_dump.job import DumpJob
from alignkd.teacher_dump.preparation import PreparationThreads
from alignkd.teacher_dump.settings.store import StoreConfig
from alignkd.teacher_dump.settings.teacher import TeacherConfig
from alignkd.vlm.data.source import DataSet


class Noted(ArrayBudget):
    """A budget that remembers the most bytes that were held, and the largest sample."""

    made: list["Noted"]
    most = largest = 0

    def __init__(self, limit: int) -> None:
        super().__init__(limit)
        self.made.append(self)

    def take(self, num_bytes: int) -> bool:
        fits = super().take(num_bytes)
        self.most, self.largest = max(self.most, self.held), max(self.largest, num_bytes)
        return fits


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> DumpJob:
    """Ten samples in windows of four and batches of two."""
    folder = tmp_path_factory.mktemp("budget")
    data = tiny_data.write(folder)
    teacher = tiny_families.build("qwen3_vl", folder / "teacher")
    return DumpJob(
        data=(DataSet(path=data.conversations, images=data.images),),
        template=None,
        max_tokens=None,
        teacher=TeacherConfig(checkpoint=str(teacher), sanity="off", window=4, batch=2),
        store=StoreConfig(path=folder / "store", backend="webdataset", shard_size=10, inputs="embed"),
    )


def written(job: DumpJob, path: Path, limit: int, monkeypatch: pytest.MonkeyPatch) -> tuple[dict[str, bytes], Noted]:
    """Name -> content of the store's shards, and the budget of the dump."""
    Noted.made = []
    monkeypatch.setattr(preparation_module, "ArrayBudget", Noted)
    monkeypatch.setattr(dump_module, "PreparationThreads", partial(PreparationThreads, array_bytes=limit))
    store = job.store.model_copy(update={"path": path})
    dump_module.dump(DumpJob(**{**vars(job), "store": store}))
    (budget,) = Noted.made
    return {file.name: file.read_bytes() for file in sorted((path / "shards").rglob("*.*")) if file.is_file()}, budget


@pytest.mark.parametrize("limit", [1, 100_000])
def test_shards_are_the_same_with_less_memory(
    job: DumpJob, tmp_path: Path, limit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    without, free = written(job, tmp_path / "free", 1 << 40, monkeypatch)
    within, bound = written(job, tmp_path / "bound", limit, monkeypatch)
    assert within == without and len(within) == 2
    assert free.refused == 0 < bound.refused and free.held == bound.held == 0
    assert 0 < bound.most <= max(limit, bound.largest) < free.most


def test_a_budget_takes_one_sample_of_any_size() -> None:
    budget = ArrayBudget(10)
    assert budget.take(25) and not budget.take(1) and budget.refused == 1
    budget.give(25)
    assert budget.take(4) and budget.take(6) and not budget.take(1) and budget.held == 10
