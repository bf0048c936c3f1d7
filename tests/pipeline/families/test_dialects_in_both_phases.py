"""Data in other dialects through both phases: masked answers have no targets, and training reads the same labels."""

import base64
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny_data
import yaml

from alignkd.storage.read.store import StoreReader
from alignkd.vlm.data.turns import turns_of
from alignkd.vlm.families.open import open_checkpoint
from alignkd.vlm.inputs.labels import IGNORE_LABEL

FAMILY = "qwen2_5_vl"


def entries_of(images: Path) -> list[dict[str, Any]]:
    square = images / "square.png"
    parts = [{"type": "image", "image": str(square)}, {"type": "text", "text": "what colour is the cat?"}]
    url = f"data:image/png;base64,{base64.b64encode(square.read_bytes()).decode()}"
    masked = [
        {"role": "system", "content": "Answer in one word."},
        {"role": "user", "content": parts},
        {"role": "assistant", "content": "the cat is black", "loss": 0},
        {"role": "user", "content": "how many birds?"},
        {"role": "assistant", "content": "two"},
    ]
    return [
        {"id": "masked", "messages": masked},
        {"id": "pairs", "images": [url], "texts": [{"user": "what is it?", "assistant": "a dog"}]},
        {"id": "text", "question": "a colour?", "answer": "green"},
        {"id": "nothing", "messages": masked[:3]},
        {"id": "caption", "image": "wide.png", "caption": "a wide sofa"},
    ]


@pytest.fixture
def configuration(data: tiny_data.TinyData, checkpoint: Callable[..., Path], tmp_path: Path) -> Path:
    (tmp_path / "data.json").write_text(json.dumps(entries_of(data.images)))
    sections = {
        "data": {"conversations": str(tmp_path / "data.json"), "images": str(data.images)},
        "teacher": {"checkpoint": str(checkpoint(FAMILY, seed=1)), "dtype": "float32", "sanity": "off"},
        "student": {"checkpoint": str(checkpoint(FAMILY, seed=2))},
        "store": {"path": str(tmp_path / "store"), "inputs": "embed"},
        "train": {"output": str(tmp_path / "out"), "steps": 2, "micro_batch": 2, "global_batch": 4, "data_workers": 0,
                  "report_to": "none"},
    }  # fmt: skip
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(sections))
    return tmp_path / "run.yaml"


def test_dump_and_training(
    configuration: Path, data: tiny_data.TinyData, checkpoint: Callable[..., Path], alignkd_here: Callable[..., Any]
) -> None:
    dumped = alignkd_here("dump", configuration)
    assert dumped.returncode == 0, dumped.stdout + dumped.stderr
    reader = StoreReader(configuration.parent / "store")
    records = {record.id: record for record in reader}
    assert records.keys() == {"masked", "pairs", "text", "caption"}
    assert "nothing would be trained: every answer is masked" in dumped.stdout + dumped.stderr

    preparation = open_checkpoint(checkpoint(FAMILY, seed=2)).preparation()
    for record in records.values():
        example = preparation.build(turns_of(record.conversations), record.image_bytes)
        assert record.input_ids.tolist() == example.input_ids.tolist()
        assert record.labels.tolist() == example.labels.tolist()
    masked = records["masked"]
    assert [turn.get("trained") for turn in masked.conversations] == [None, None, False, None, None]
    supervised = masked.labels[masked.labels != IGNORE_LABEL]
    assert preparation.decode(supervised).strip() == "two" and len(masked.supervised_positions) == len(supervised)
    square = (data.images / "square.png").read_bytes()
    assert masked.images == ("square.png",) and masked.image_bytes == records["pairs"].image_bytes == (square,)
    assert records["pairs"].images[0].startswith("base64-")

    trained = alignkd_here("train", configuration)
    assert trained.returncode == 0, trained.stdout + trained.stderr
    assert (configuration.parent / "out" / "student").is_dir()
