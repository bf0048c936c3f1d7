"""What a bucketed, batched, threaded dump stores is what the live teacher gives for each sample by itself."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from alignkd.storage import Record, StoreReader
from alignkd.teacher_dump.dump import dump
from alignkd.teacher_dump.job import DumpJob
from alignkd.vlm.attention.focus import vision_top_index
from alignkd.vlm.data.turns import Turn
from alignkd.vlm.families.mobilevlm.inputs.preparation import MobileVLMPreparation
from alignkd.vlm.families.mobilevlm.model.mobilevlm import MobileVLM
from alignkd.vlm.families.mobilevlm.weights.checkpoint import load_model, load_preparation
from alignkd.vlm.inputs.batch import collate_sequences

MakeJob = Callable[..., DumpJob]


@pytest.fixture(scope="module")
def model(golden: Path) -> MobileVLM:
    return load_model(golden / "teacher", vision_config=golden / "clip")


@pytest.fixture(scope="module")
def builder(golden: Path) -> MobileVLMPreparation:
    return load_preparation(golden / "teacher", template="v1", vision_config=golden / "clip")


@pytest.fixture
def entries(golden: Path) -> list[Any]:
    """The golden samples cut to one, two or all of their turns: many lengths, pictures that come again."""
    samples = json.loads((golden / "v1.json").read_text())
    return [
        {**sample, "id": f"{sample['id']}/{turns}", "conversations": sample["conversations"][:turns]}
        for turns in (2, 4, 6)
        for sample in samples
        if len(sample["conversations"]) >= turns
    ]


@torch.no_grad()
def live(model: MobileVLM, builder: MobileVLMPreparation, record: Record, images: Path) -> dict[str, Tensor]:
    """Targets of one sample alone, by the model's own methods."""
    files = [(images / image).read_bytes() for image in record.images]
    example = builder.build([Turn(turn["from"], turn["value"]) for turn in record.conversations], files)
    batch = collate_sequences([example])
    vision = model.encode_images(batch.images) if batch.images else None
    embeds_1LD = model.embed(batch, vision)
    hidden_LD = model.decoder_states(embeds_1LD)[0]
    found = {"logits": model.lm_head(hidden_LD[torch.from_numpy(example.positions.supervised_positions.astype(int))])}
    if vision is not None:
        rows, cols = (
            torch.from_numpy(at.astype(int))[None]
            for at in (example.positions.tqv_query_positions, example.positions.vision_positions)
        )
        tqv_HQP = model.first_layer_attention(embeds_1LD, rows, cols)[0]
        top = vision_top_index(tqv_HQP)
        found |= {"attention": tqv_HQP.transpose(0, 1)[None], "vision_embeddings": vision.embeddings_PD[None]}
        found |= {"vision_top_index": top, "vision_top_embeddings": vision.embeddings_PD[top]}
    return found


@pytest.mark.parametrize("batching", [{"batch": 9}, {"token_budget": 700, "window": 5}])
def test_every_target_of_every_sample(
    make_job: MakeJob, model: MobileVLM, builder: MobileVLMPreparation, entries: list[Any], batching: dict[str, int]
) -> None:
    job = make_job(entries, shard_size=6, **batching)
    assert dump(job).num_records == len(entries)
    reader = StoreReader(job.store.path)
    assert job.data[0].images is not None and len(set(reader.sequence_lengths)) > 4
    for number in range(len(reader)):
        record = reader[number]
        expected = live(model, builder, record, job.data[0].images)
        assert ("attention" in expected) == (record.attention is not None)
        for name, values in expected.items():
            stored = np.asarray(getattr(record, name), np.float64)
            error = np.linalg.norm(stored - values.numpy()) / np.linalg.norm(values.numpy())
            assert error < 1e-6, (record.id, name)
