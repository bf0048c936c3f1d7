"""Tiny checkpoints of transformers' families as teachers, and one data set for all of them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_families
from PIL import Image

from alignkd.teacher_dump.job import DumpJob
from alignkd.teacher_dump.operation.control import DumpControl
from alignkd.teacher_dump.settings.store import StoreConfig
from alignkd.teacher_dump.settings.teacher import TeacherConfig
from alignkd.vlm.data.source import DataSet

FamilyJob = Callable[..., DumpJob]
SIZES = {"wide.png": (120, 40), "tall.png": (50, 90), "near.png": (64, 48)}


def entry(number: int, images: list[str], *values: str) -> dict[str, Any]:
    turns = [{"from": ("human", "gpt")[place % 2], "value": value} for place, value in enumerate(values)]
    return {"id": f"s{number}", **({"image": images} if images else {}), "conversations": turns}


# no, one, two and three images; an image alone, beside others, and twice in a sample
ENTRIES = [
    entry(0, ["near.png", "wide.png"], "<image>\n<image>\nAre they alike?", "no, not at all"),
    entry(1, [], "Name a color.", "green"),
    entry(2, ["tall.png"], "<image>\nWhat is it?", "a cup"),
    entry(3, ["near.png"], "<image>\nwhat is here?", "one", "and there?", "two"),
    entry(4, ["wide.png", "near.png", "wide.png"], "<image>\n<image>\n<image>\nwhich?", "the second"),
    entry(5, ["near.png"], "<image>\nWhere?", "on the left"),
    entry(6, ["near.png", "wide.png"], "<image>\n<image>\nAnd now?", "they are"),
]


@pytest.fixture(scope="session")
def family_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `data.json` and `images`."""
    folder = tmp_path_factory.mktemp("family-data")
    (folder / "images").mkdir()
    random = np.random.default_rng(0)
    for name, (width, height) in SIZES.items():
        pixels = random.integers(0, 255, (height, width, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "images" / name)
    (folder / "data.json").write_text(json.dumps(ENTRIES))
    return folder


@pytest.fixture(scope="session")
def family_teacher(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """`family_teacher("smolvlm")`: the folder of a tiny checkpoint with random weights, built once."""
    built: dict[str, Path] = {}

    def build(name: str) -> Path:
        if name not in built:
            built[name] = tiny_families.build(name, tmp_path_factory.mktemp("teachers") / name, seed=1)
        return built[name]

    return build


@pytest.fixture
def family_job(family_data: Path, family_teacher: Callable[[str], Path], tmp_path: Path) -> FamilyJob:
    """`family_job("smolvlm", batch=2, **settings of the store)`: a dump into tmp_path/store, targets in float32."""

    def make(
        family: str, *, batch: int = 4, window: int = 128, control: DumpControl | None = None, **settings: Any
    ) -> DumpJob:
        exact = {"attention": "float32", "vision_top": "float32", "vision_all": "float32", "logits": {"kind": "full"}}
        return DumpJob(
            data=(DataSet(path=family_data / "data.json", images=family_data / "images"),),
            template=None,
            max_tokens=4096,
            teacher=TeacherConfig(checkpoint=str(family_teacher(family)), batch=batch, window=window, sanity="off"),
            store=StoreConfig(**{"path": tmp_path / "store", "shard_size": 3, **exact, **settings}),
            control=control or DumpControl(),
        )

    return make
