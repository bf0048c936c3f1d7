"""A family that is only a folder and its name is dumped and trained: neither phase names a family."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import toy_family
import yaml

from alignkd.pipeline.config.run_config import load_run_config
from alignkd.storage.read.store import StoreReader
from alignkd.student_train.trainer import train
from alignkd.teacher_dump.dump import dump
from alignkd.vlm.data.turns import Turn
from alignkd.vlm.families.open import open_checkpoint
from alignkd.vlm.inputs.batch import collate_sequences

ENTRIES = [
    (["coffee.png"], ["<image>\nwhat is it?", "a cup", "full?", "yes"]),
    ([], ["a colour?", "green"]),
    (["rocket.jpg", "coffee.png"], ["<image> or <image>, which one flies?", "the first, é"]),
    (["chelsea.png"], ["who is <image> this?", "a cat"]),
]


@pytest.fixture
def configuration(monkeypatch: pytest.MonkeyPatch, golden_images: Path, tmp_path: Path) -> Path:
    toy_family.register(monkeypatch)
    from alignkd.vlm.families.toy.checkpoint import write_toy  # type: ignore[import-not-found]

    entries: list[dict[str, Any]] = [
        {
            "id": str(number),
            "image": images,
            "conversations": [{"from": ("human", "gpt")[n % 2], "value": value} for n, value in enumerate(values)],
        }
        for number, (images, values) in enumerate(ENTRIES)
    ]
    (tmp_path / "data.json").write_text(json.dumps(entries))
    sections = {
        "data": {"conversations": str(tmp_path / "data.json"), "images": str(golden_images)},
        "teacher": {
            "checkpoint": str(write_toy(tmp_path / "teacher", hidden_size=16, num_heads=4, seed=0)),
            "dtype": "float32",
            "sanity": "off",
        },
        "student": {"checkpoint": str(write_toy(tmp_path / "student", hidden_size=8, num_heads=2, seed=1))},
        "store": {"path": str(tmp_path / "store"), "profile": "exact", "attention": "float32", "vision_top": "float32",
                  "vision_all": "float32", "logits": {"kind": "full", "dtype": "float32"}},
        "train": {"output": str(tmp_path / "out"), "steps": 3, "micro_batch": 2, "global_batch": 4, "data_workers": 0,
                  "report_to": "none"},
    }  # fmt: skip
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(sections))
    return tmp_path / "run.yaml"


def test_dump_and_training(configuration: Path, golden_images: Path) -> None:
    run = load_run_config(configuration, "run")
    dump(run.dump_job())
    reader = StoreReader(configuration.parent / "store")
    opened = open_checkpoint(configuration.parent / "teacher")
    preparation, model = opened.preparation(), opened.load_model()
    assert sorted(record.index for record in reader) == [0, 1, 2, 3]
    for record in reader:
        images, _ = ENTRIES[record.index]
        example = preparation.build(
            [Turn(turn["from"], turn["value"]) for turn in record.conversations],
            [(golden_images / name).read_bytes() for name in images],
        )
        assert record.input_ids.tolist() == example.input_ids.tolist()
        assert record.tokens_of_image == example.positions.tokens_of_image
        assert record.attention_pairs == "tqv"
        batch = collate_sequences([example])
        with torch.no_grad(), model.watched_first_layer() as first:
            vision = model.encode_images(batch.images) if images else None
            hidden_LD = model.hidden_states(batch, vision)[0]
            logits_NV = model.head(hidden_LD[record.supervised_positions])
        torch.testing.assert_close(torch.as_tensor(record.logits), logits_NV, rtol=1e-5, atol=1e-6)
        if vision is None:
            assert record.tqv_attention is None and record.vision_embeddings is None
            continue
        every = torch.arange(len(hidden_LD))[None]
        whole_HLL = first.attention(every, every)[0]
        expected_HQP = whole_HLL[:, record.tqv_query_positions][:, :, record.vision_positions]
        torch.testing.assert_close(torch.as_tensor(record.tqv_attention), expected_HQP, rtol=1e-5, atol=1e-7)
        torch.testing.assert_close(
            torch.as_tensor(record.vision_embeddings_float32), vision.embeddings_PD, rtol=1e-5, atol=1e-7
        )

    result = train(run.train_job())
    assert result.step == 3 and result.student is not None
    folders = (configuration.parent / "student", result.student)
    before, after = (open_checkpoint(folder).load_model().state_dict() for folder in folders)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == before.keys() - {"tower.weight", "tower.bias"}
