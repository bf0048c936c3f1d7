"""The golden samples, what their teacher gives for them, and a dump of it to compare an import with."""

import json
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from foreign_files import Scored

from alignkd.storage import Record, StoreReader

Alignkd = Callable[..., "subprocess.CompletedProcess[str]"]
TOP_K = 12
ANY_ID = 5  # what the other tool writes at vision positions


@dataclass(frozen=True, kw_only=True)
class World:
    """A data set, a teacher, and what a dump of it with all logits has stored.

    Attributes:
        options: of `shards import`, without the files and the store.
        samples: of every sample that is not left out, in the order of the data.
        top_k: a store with the `TOP_K` most probable tokens.
    """

    data: Path
    images: Path
    options: list[str]
    samples: list[Scored]
    top_k: Path
    vocab_size: int


def scored(record: Record, random: np.random.Generator) -> Scored:
    """A record with full logits as a scored sequence; at positions that are not supervised any distribution."""
    logits = np.asarray(record.logits, np.float64)
    ids = np.array(record.input_ids, np.int64)
    if (ids == -200).any():  # the tool's own ids in place of the image
        expanded = np.full(record.sequence_length, ANY_ID, np.int64)
        text = np.setdiff1d(np.arange(record.sequence_length), record.vision_positions)
        expanded[text] = ids[ids != -200]
        ids = expanded
    dense = random.normal(size=(len(ids), logits.shape[1]))
    dense[record.supervised_positions] = logits
    logprobs = (
        dense - np.log(np.exp(dense - dense.max(1, keepdims=True)).sum(1, keepdims=True)) - dense.max(1, keepdims=True)
    )
    return Scored(
        id=record.id, tokens=ids.tolist(), logprobs=logprobs, first_label=int(record.supervised_positions[0]) + 1
    )


def make_world(folder: Path, config: dict[str, Any], options: list[str], alignkd: Alignkd) -> World:
    """Dump twice: all logits in float32, and the most probable."""
    for name, logits in (
        ("full", {"kind": "full"}),
        ("top_k", {"kind": "topk", "top_k": TOP_K, "dtype": "float32"}),
    ):
        store = {
            "path": str(folder / name),
            "shard_size": 2,
            "attention": "none",
            "vision_top": "none",
            "vision_all": "none",
        }
        path = folder / f"{name}.yaml"
        path.write_text(yaml.safe_dump({**config, "store": {**store, "logits": logits}}))
        done = alignkd("dump", path)
        assert done.returncode == 0, done.stderr
    reader = StoreReader(folder / "full")
    order = np.argsort(reader.dataset_index)
    random = np.random.default_rng(0)
    data = config["data"]
    return World(
        data=Path(data["conversations"]),
        images=Path(data["images"]),
        options=["--data", data["conversations"], "--images", data["images"], *options],
        samples=[scored(reader[int(number)], random) for number in order],
        top_k=folder / "top_k",
        vocab_size=reader.manifest.shapes.vocab_size,
    )


@pytest.fixture(scope="session")
def golden_world(
    golden: Path, golden_images: Path, tmp_path_factory: pytest.TempPathFactory, alignkd_here: Alignkd
) -> World:
    """The golden v1 samples and their MobileVLM teacher."""
    folder = tmp_path_factory.mktemp("golden-world")
    data = folder / "data.json"
    data.write_text(json.dumps(json.loads((golden / "v1.json").read_text())))
    model = {"checkpoint": str(golden / "teacher"), "vision_config": str(golden / "clip")}
    config = {
        "data": {"conversations": str(data), "images": str(golden_images), "template": "v1"},
        "teacher": {**model, "sanity": "off"},
    }
    options = ["--checkpoint", model["checkpoint"], "--vision-config", model["vision_config"], "--template", "v1"]
    return make_world(folder, config, options, alignkd_here)
