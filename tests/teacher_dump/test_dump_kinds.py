"""The teacher pass in every way of keeping its outputs, against the exact store of the same teacher."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from alignkd.storage import Record, StoreError, StoreReader, verify_store
from alignkd.storage.record.record import HiddenStates, SampledLogits, TruncatedLogits, as_float32
from alignkd.teacher_dump.dump import dump
from alignkd.teacher_dump.job import DumpJob
from alignkd.vlm.errors import InputError
from alignkd.vlm.stem.teacher_head import LM_HEAD_FILE, TOKENIZER_FILE, read_head

MakeJob = Callable[..., DumpJob]
BACKENDS = ["zarr", "webdataset"]


def by_id(path: Path | str) -> dict[str, Record]:
    reader = StoreReader(path)
    return {reader.ids[number]: reader[number] for number in range(len(reader))}


def tree(path: Path) -> dict[str, bytes]:
    return {str(file.relative_to(path)): file.read_bytes() for file in sorted(path.rglob("*")) if file.is_file()}


@pytest.mark.parametrize("profile", ["exact", "compact"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_profiles(
    profile: str, backend: str, make_job: MakeJob, exact_records: dict[str, Record], tmp_path: Path
) -> None:
    job = make_job(backend=backend, inputs="embed")
    store = type(job.store)(path=tmp_path / "store", profile=profile, backend=backend, inputs="embed", shard_size=2)
    dump(replace(job, store=store))
    assert verify_store(tmp_path / "store", deep=True).ok
    found = by_id(tmp_path / "store")
    assert exact_records.keys() == found.keys()
    for sample_id, true in exact_records.items():
        record = found[sample_id]
        assert record.key == true.key
        if not true.has_image:
            assert record.image_bytes == () and record.attention is None
            continue
        assert record.has_image and job.data[0].images is not None
        assert record.image_bytes == tuple((job.data[0].images / image).read_bytes() for image in record.images)
        for field in ("attention_float32", "vision_embeddings_float32", "vision_top_embeddings_float32"):
            stored, expected = getattr(record, field), getattr(true, field)
            assert 0 < np.linalg.norm(stored - expected) < 0.01 * np.linalg.norm(expected), field
        np.testing.assert_array_equal(record.vision_top_index, true.vision_top_index)


def test_hidden_states_and_the_attached_lm_head_give_the_logits(
    make_job: MakeJob, exact_records: dict[str, Record]
) -> None:
    job = make_job(logits={"kind": "hidden", "dtype": "float32"})
    dump(job)
    reader = StoreReader(job.store.path)
    head = read_head(reader.attachment(LM_HEAD_FILE), vocab_size=512, hidden_size=128)
    for sample_id, record in by_id(job.store.path).items():
        assert isinstance(record.logits, HiddenStates)
        logits = torch.from_numpy(as_float32(record.logits.states)) @ head.weight_VD.T
        np.testing.assert_allclose(logits.numpy(), exact_records[sample_id].logits, rtol=1e-6, atol=1e-6)
    with pytest.raises(InputError, match=r"has shape \(512, 128\), the store's teacher has \(512, 64\)"):
        read_head(reader.attachment(LM_HEAD_FILE), vocab_size=512, hidden_size=64)


def test_every_store_carries_the_tokenizer(make_job: MakeJob, golden: Path) -> None:
    job = make_job()
    dump(job)
    reader = StoreReader(job.store.path)
    assert reader.attachment(TOKENIZER_FILE).read_bytes() == (golden / "teacher" / TOKENIZER_FILE).read_bytes()
    assert reader.manifest.attachments.keys() == {TOKENIZER_FILE}


def test_nucleus_and_draws_describe_the_same_distribution(
    make_job: MakeJob, exact_records: dict[str, Record], tmp_path: Path
) -> None:
    kinds = {
        "nucleus": {"p": 0.5, "min_entries": 2, "max_entries": 400},
        "sampled": {"num_draws": 200},
    }
    stores = {}
    for kind, settings in kinds.items():
        dump(make_job(path=tmp_path / kind, logits={"kind": kind, **settings}))
        stores[kind] = by_id(tmp_path / kind)
    for sample_id, true in exact_records.items():
        logits = np.asarray(true.logits, np.float64)
        logprobs = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
        truncated, sampled = stores["nucleus"][sample_id].logits, stores["sampled"][sample_id].logits
        assert isinstance(truncated, TruncatedLogits) and isinstance(sampled, SampledLogits)
        labels = true.labels[1:][true.labels[1:] != -100]
        for position, row in enumerate(logprobs):
            entries = slice(int(truncated.offsets[position]), int(truncated.offsets[position + 1]))
            ids = truncated.ids[entries]
            assert np.exp(row[ids]).sum() > 0.5 - 1e-4 and labels[position] in ids
            np.testing.assert_allclose(truncated.logprobs[entries], row[ids], rtol=2e-3)
        entropy = -(np.exp(logprobs) * logprobs).sum(axis=1)
        np.testing.assert_allclose(sampled.entropy, entropy, rtol=1e-4)
        # the drawn tokens' mean log-probability estimates minus the entropy
        position_of = np.repeat(np.arange(len(logprobs)), np.diff(sampled.offsets))
        drawn = np.bincount(position_of, sampled.counts / 200 * logprobs[position_of, sampled.ids])
        spread = np.sqrt((np.exp(logprobs) * (logprobs + entropy[:, None]) ** 2).sum(axis=1) / 200)
        assert (np.abs(drawn + entropy) < 5 * spread).all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_resumed_store_of_draws_equals_an_unbroken_one(backend: str, make_job: MakeJob) -> None:
    job = make_job(backend=backend, inputs="embed", logits={"kind": "sampled"}, seed=3)
    dump(job)
    whole = tree(job.store.path)
    (job.store.path / "commits" / "00000000.json").unlink()
    assert dump(job).shards_written == 1
    assert tree(job.store.path) == whole


OTHER: list[tuple[dict[str, Any], str]] = [
    ({"inputs": "embed"}, r"inputs is reference in the store, embed asked for"),
    ({"backend": "webdataset"}, r"backend is zarr in the store, webdataset asked for"),
    ({"logits": {"kind": "nucleus"}}, r"codecs\.logits\.kind is topk in the store, nucleus asked for"),
    ({"logits": {"kind": "topk", "top_k": 9}}, r"codecs\.logits\.top_k is 64 in the store, 9 asked for"),
    ({"attention": "sqrt_u8"}, r"codecs\.attention is float32 in the store, sqrt_u8 asked for"),
    ({"logits": {"kind": "hidden"}}, r"attachments\.lm_head\.safetensors is absent in the store, \w+ asked"),
]


def test_a_store_of_other_settings_is_refused_with_both_values(make_job: MakeJob) -> None:
    dump(make_job(logits={"kind": "topk"}))
    for settings, named in OTHER:
        with pytest.raises(StoreError, match=named) as error:
            dump(make_job(**{"logits": {"kind": "topk"}, **settings}))
        assert "\n" not in str(error.value)


def without_images(job: DumpJob) -> DumpJob:
    return replace(job, data=(replace(job.data[0], images=None),))


def test_images_without_an_image_folder(make_job: MakeJob) -> None:
    with pytest.raises(InputError, match=r"data\.json: has samples with images, but data\.images is missing"):
        dump(without_images(make_job()))
    text = [{"id": "t", "conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "ho"}]}]
    assert dump(without_images(make_job(text, inputs="embed"))).num_records == 1
