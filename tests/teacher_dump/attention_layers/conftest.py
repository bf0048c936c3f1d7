"""Attention of every layer by transformers' own eager attention, beside what a dump stores."""

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import LlamaModel

from alignkd.storage import Record, StoreReader
from alignkd.teacher_dump.dump import dump
from alignkd.teacher_dump.job import DumpJob
from alignkd.vlm.data.turns import Turn
from alignkd.vlm.families.mobilevlm.inputs.preparation import MobileVLMPreparation
from alignkd.vlm.families.mobilevlm.model.mobilevlm import MobileVLM
from alignkd.vlm.families.mobilevlm.weights.checkpoint import load_model, load_preparation
from alignkd.vlm.inputs.batch import collate_sequences

LayersOf = Callable[[Record], list[NDArray[np.float32]]]


@pytest.fixture
def dumped(make_job: Callable[..., DumpJob]) -> Callable[..., dict[str, Record]]:
    """`dumped(**settings of the store)`: the records of a new store by id."""

    def run(**settings: Any) -> dict[str, Record]:
        job = make_job(**settings)
        dump(job)
        reader = StoreReader(job.store.path)
        return {reader.ids[number]: reader[number] for number in range(len(reader))}

    return run


@pytest.fixture(scope="module")
def eager(golden: Path, golden_images: Path) -> LayersOf:
    """`eager(record)`: [Ht, L, L] of each layer, from a decoder of transformers that returns its attention."""
    model = load_model(golden / "teacher", vision_config=golden / "clip")
    builder = load_preparation(golden / "teacher", template="v1", vision_config=golden / "clip")
    decoder = LlamaModel._from_config(model.config.llama, attn_implementation="eager")
    weights = {name: value for name, value in model.model.state_dict().items() if name in decoder.state_dict()}
    decoder.load_state_dict(weights)

    @cache
    def layers_of(name: str) -> list[NDArray[np.float32]]:
        return computed(records[name])

    def layers(record: Record) -> list[NDArray[np.float32]]:
        records[record.id] = record
        return layers_of(record.id)

    records: dict[str, Record] = {}  # the same sample in every store

    @torch.no_grad()
    def computed(record: Record) -> list[NDArray[np.float32]]:
        output = decoder.eval()(inputs_embeds=_embeds(model, builder, record, golden_images), output_attentions=True)
        return [attention[0].numpy() for attention in output.attentions]

    return layers


def _embeds(model: MobileVLM, builder: MobileVLMPreparation, record: Record, images: Path) -> Tensor:
    files = [(images / image).read_bytes() for image in record.images]
    example = builder.build([Turn(turn["from"], turn["value"]) for turn in record.conversations], files)
    batch = collate_sequences([example])
    return model.embed(batch, model.encode_images(batch.images))
