"""A dump of samples with no, one and several images, batched, against each sample spliced by hand and run alone."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from alignkd.storage import Record, StoreReader, verify_store
from alignkd.storage.record.encoded import EncodedArray, as_float32, error_bound
from alignkd.teacher_dump.dump import dump
from alignkd.teacher_dump.job import DumpJob
from alignkd.vlm.data.images import read_image_bytes
from alignkd.vlm.families.mobilevlm.inputs.preparation import MobileVLMPreparation
from alignkd.vlm.families.mobilevlm.model.mobilevlm import MobileVLM
from alignkd.vlm.families.mobilevlm.weights.checkpoint import load_model, load_preparation
from alignkd.vlm.inputs.labels import IMAGE_TOKEN_ID

MakeJob = Callable[..., DumpJob]
P, TOP = 144, 16


def entry(number: int, images: list[str], *values: str) -> dict[str, Any]:
    turns = [{"from": ("human", "gpt")[place % 2], "value": value} for place, value in enumerate(values)]
    return {"id": f"s{number}", **({"image": images} if images else {}), "conversations": turns}


ENTRIES = [
    entry(0, ["coffee.png", "chelsea.png"], "Is <image> like <image>?", "no, not at all"),
    entry(1, [], "Name a color.", "green"),
    entry(2, ["rocket.jpg"], "<image>\nWhat is this?", "a rocket"),
    entry(3, ["chelsea.png", "rocket.jpg", "chelsea.png"], "<image><image> cups?", "none", "<image>\nhere?", "one"),
    entry(4, ["chelsea.png", "coffee.png"], "<image> and <image>", "a cat and a cup"),
]
Expected = dict[str, np.ndarray[Any, Any]]


@pytest.fixture(scope="module")
def model(golden: Path) -> MobileVLM:
    return load_model(golden / "teacher", vision_config=golden / "clip")


@pytest.fixture(scope="module")
def builder(golden: Path) -> MobileVLMPreparation:
    return load_preparation(golden / "teacher", template="v1", vision_config=golden / "clip")


@torch.no_grad()
def alone(model: MobileVLM, builder: MobileVLMPreparation, record: Record, folder: Path) -> Expected:
    """The targets of a record from its own ids and images: one block of features per placeholder, in order."""
    features = []
    for image in record.images:
        pixels = builder.image_processor(read_image_bytes(folder, image))
        features.append(model.encode_images([{"pixel_values": torch.from_numpy(pixels)}]).embeddings_PD)
    blocks, images, pieces = [], iter(features), []
    for token in record.input_ids.tolist():
        if token == IMAGE_TOKEN_ID:
            blocks.append(sum(map(len, pieces)))
            pieces.append(next(images))
        else:
            pieces.append(model.model.embed_tokens.weight[token][None])
    embeds = torch.cat(pieces)[None]
    every = torch.arange(embeds.shape[1])[None]
    attention = model.first_layer_attention(embeds, every, every)[0]
    hidden = model.decoder_states(embeds)[0][record.supervised_positions]
    expected = {"logits": model.lm_head(hidden)}
    if blocks:
        after = blocks[-1] + P
        of_image = [attention[:, after:, start : start + P].transpose(0, 1) for start in blocks]
        scores = torch.cat([block.mean(1).sum(0) for block in of_image])
        expected |= {
            "attention": torch.stack(of_image),
            "vision_embeddings": torch.stack(features),
            "vision_top_index": scores.argsort(descending=True, stable=True)[:TOP],
        }
        expected["vision_top_embeddings"] = torch.cat(features)[expected["vision_top_index"]]
    return {name: values.numpy() for name, values in expected.items()}


def test_batched_targets_are_those_of_each_sample_alone(
    make_job: MakeJob, model: MobileVLM, builder: MobileVLMPreparation
) -> None:
    job = make_job(ENTRIES, batch=5, shard_size=5, sanity="off")
    result = dump(job)
    assert (result.num_records, result.quarantined) == (len(ENTRIES), [])
    reader = StoreReader(job.store.path)
    assert job.data[0].images is not None
    for place in range(len(reader)):
        record = reader[place]
        expected = alone(model, builder, record, job.data[0].images)
        assert record.num_images == len(ENTRIES[record.index].get("image", []))
        for name, values in expected.items():
            found = np.asarray(getattr(record, name))
            assert found.shape == values.shape, (record.id, name)
            if name == "vision_top_index":
                np.testing.assert_array_equal(found, values)
            else:
                error = np.abs(found - values).max() / np.abs(values).max()
                assert error < 1e-6, (record.id, name, error)
        for name in ("attention", "vision_embeddings", "vision_top_index"):
            assert (getattr(record, name) is None) == (name not in expected)


@pytest.mark.parametrize("backend", ["zarr", "webdataset"])
def test_a_compact_store_of_its_own_images(
    make_job: MakeJob, model: MobileVLM, builder: MobileVLMPreparation, backend: str
) -> None:
    compact = {"attention": "sqrt_u8", "vision_top": "from_all", "vision_all": "int8_channel"}
    job = make_job(ENTRIES, **compact, inputs="embed", backend=backend, shard_size=5, sanity="off")
    dump(job)
    assert verify_store(job.store.path, deep=True).ok
    reader = StoreReader(job.store.path)
    assert job.data[0].images is not None
    for place in range(len(reader)):
        record = reader[place]
        assert record.image_bytes == tuple((job.data[0].images / image).read_bytes() for image in record.images)
        expected = alone(model, builder, record, job.data[0].images)
        for name in ("attention", "vision_embeddings"):
            if name not in expected:
                continue
            # the attention of all images is one target, the embeddings of each image are one
            pairs = [(record.attention, expected[name])]
            if name == "vision_embeddings":
                pairs = list(zip(record.vision_embeddings or (), expected[name], strict=True))
            for found, values in pairs:
                assert isinstance(found, EncodedArray)
                error, allowed = np.abs(as_float32(found) - values), error_bound(found)
                assert (error <= allowed + 1e-5).all(), (record.id, name)


def test_what_decides_a_record_of_several_images(make_job: MakeJob, tmp_path: Path) -> None:
    """The same images in another order are another sample; placeholders and paths must agree in number."""
    turns = ENTRIES[0]["conversations"]
    entries = [
        ENTRIES[0],
        {"id": "turned", "image": ["chelsea.png", "coffee.png"], "conversations": turns},
        {"id": "one path", "image": ["chelsea.png"], "conversations": turns},
        {"id": "gone", "image": ["chelsea.png", "none.png"], "conversations": turns},
    ]
    result = dump(make_job(entries, sanity="off"))
    reader = StoreReader(tmp_path / "store")
    first, turned = (reader[reader.find(id=name)[0]] for name in ("s0", "turned"))
    assert first.key != turned.key and first.images == ("coffee.png", "chelsea.png")
    assert first.vision_embeddings is not None and turned.vision_embeddings is not None
    np.testing.assert_array_equal(first.vision_embeddings[::-1], turned.vision_embeddings)
    reasons = {sample_id: reason for _, sample_id, reason in result.quarantined}
    assert reasons["one path"].startswith("2 <image> in the conversation but 1 image; ")
    assert "none.png: image cannot be read" in reasons["gone"]
