"""A job over the golden fine-tuning samples."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from alignkd.storage import Record, StoreReader
from alignkd.teacher_dump.dump import dump
from alignkd.teacher_dump.job import DumpJob
from alignkd.teacher_dump.settings.store import StoreConfig
from alignkd.teacher_dump.settings.teacher import TeacherConfig
from alignkd.vlm.data.source import DataSet

TEACHER_SETTINGS = ("batch", "token_budget", "window", "data_workers", "sanity", "dtype")
MakeJob = Callable[..., DumpJob]


def make(golden: Path, images: Path, folder: Path, entries: list[Any] | None = None, **settings: Any) -> DumpJob:
    """A dump of `entries` (the golden v1 samples) into folder/store, every target in float32 unless set otherwise.

    The teacher's weights are random, so there is nothing to check before the first shard.
    """
    max_tokens = settings.pop("max_tokens", 2048)
    given = {name: settings.pop(name) for name in TEACHER_SETTINGS if name in settings}
    surroundings = {name: settings.pop(name) for name in ("control",) if name in settings}
    data = folder / "data.json"
    data.write_text(json.dumps(json.loads((golden / "v1.json").read_text()) if entries is None else entries))
    exact = {"attention": "float32", "vision_top": "float32", "vision_all": "float32", "logits": {"kind": "full"}}
    return DumpJob(
        data=(DataSet(path=data, images=images),),
        template="v1",
        max_tokens=max_tokens,
        teacher=TeacherConfig(
            checkpoint=str(golden / "teacher"), vision_config=golden / "clip", **{"batch": 3, "sanity": "off", **given}
        ),
        store=StoreConfig(**{"path": folder / "store", "shard_size": 2, **exact, **settings}),
        **surroundings,
    )


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """Bytes depend on how many threads share a sum; a forked dump has one, so those it is compared with have, too."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def make_job(golden: Path, golden_images: Path, tmp_path: Path) -> MakeJob:
    """`make_job(entries=None, max_tokens=2048, **settings of teacher and store)`: see `make`."""
    return lambda entries=None, **settings: make(golden, golden_images, tmp_path, entries, **settings)


@pytest.fixture(scope="session")
def exact_records(golden: Path, golden_images: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Record]:
    """The golden v1 samples by id, every target in float32, logits in full."""
    job = make(golden, golden_images, tmp_path_factory.mktemp("exact"))
    dump(job)
    reader = StoreReader(job.store.path)
    return {reader.ids[number]: reader[number] for number in range(len(reader))}
