"""The teacher pass as a whole: what lands in the store, what is quarantined, what is refused."""

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file
from torch import Tensor

from alignkd.storage import StoreError, StoreReader, TruncatedLogits, verify_store
from alignkd.teacher_dump.dump import dump
from alignkd.teacher_dump.job import DumpJob
from alignkd.vlm.errors import InputError
from alignkd.vlm.families.family import Vision
from alignkd.vlm.families.mobilevlm.model.mobilevlm import MobileVLM

MakeJob = Callable[..., DumpJob]


def by_id(path: Path) -> dict[str, object]:
    reader = StoreReader(path)
    return {reader.ids[number]: reader[number] for number in range(len(reader))}


def tree(path: Path) -> dict[str, bytes]:
    return {str(file.relative_to(path)): file.read_bytes() for file in sorted(path.rglob("*")) if file.is_file()}


@pytest.mark.parametrize("batch", [1, 3])
def test_records_equal_the_original_implementation(make_job: MakeJob, golden: Path, batch: int) -> None:
    job = make_job(batch=batch)
    result = dump(job)
    assert (result.num_records, result.shards_written, result.quarantined) == (4, 2, [])
    assert "tokenizer_probe" in StoreReader(job.store.path).manifest.fingerprint
    assert verify_store(job.store.path, deep=True).ok
    for sample_id, record in by_id(job.store.path).items():
        expected = load_file(golden / f"{sample_id}.safetensors")
        np.testing.assert_array_equal(record.input_ids, expected["input_ids"])
        np.testing.assert_array_equal(record.supervised_positions, expected["supervised_positions"])
        np.testing.assert_allclose(record.logits, expected["teacher.logits"], rtol=1e-4, atol=1e-5)
        if record.has_image:
            attention = record.attention[0].transpose(1, 0, 2)
            np.testing.assert_allclose(attention, expected["teacher.layer0_tqv_attention"], rtol=1e-4, atol=1e-7)
            (vision,) = record.vision_embeddings
            np.testing.assert_allclose(vision, expected["teacher.vision_embeddings"], rtol=1e-4, atol=1e-5)
            np.testing.assert_array_equal(record.vision_top_embeddings, vision[record.vision_top_index])


def test_vision_top_equals_the_original(make_job: MakeJob, golden_expected: dict[str, dict[str, object]]) -> None:
    job = make_job()
    dump(job)
    for sample_id, record in by_id(job.store.path).items():
        if record.has_image:
            assert record.vision_top_index.tolist() == golden_expected[sample_id]["vision_top16"]


def test_topk_keeps_the_label_and_the_exact_tail(make_job: MakeJob, golden: Path) -> None:
    job = make_job(logits={"kind": "topk", "top_k": 5, "dtype": "float32"})
    dump(job)
    for sample_id, record in by_id(job.store.path).items():
        expected = load_file(golden / f"{sample_id}.safetensors")
        logits = expected["teacher.logits"].astype(np.float64)
        logprobs = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
        kept = record.logits
        assert isinstance(kept, TruncatedLogits)
        for position, label in enumerate(expected["supervised_labels"]):
            entries = slice(int(kept.offsets[position]), int(kept.offsets[position + 1]))
            ids = kept.ids[entries]
            assert label in ids and set(np.argsort(-logprobs[position])[:5]) <= set(ids.tolist())
            np.testing.assert_allclose(kept.logprobs[entries], logprobs[position, ids], rtol=1e-4)
            tail = np.delete(np.exp(logprobs[position]), ids).sum()
            np.testing.assert_allclose(np.exp(kept.tail_logmass[position]), tail, rtol=1e-4)


@pytest.mark.parametrize(("pairs", "columns"), [("vqv", 144), ("tqt", None)])
def test_other_attention_pairs(make_job: MakeJob, pairs: str, columns: int | None) -> None:
    job = make_job(attention_pairs=pairs)
    dump(job)
    for record in by_id(job.store.path).values():
        if not record.has_image:
            assert record.attention is None
            continue
        rows = 144 if pairs == "vqv" else len(record.tqv_query_positions)
        assert record.attention.shape == (1, rows, 8, columns or len(record.input_ids) - 1)
        row_sums = record.attention.sum(axis=3)
        assert row_sums.max() <= 1 + 1e-5 and row_sums.min() > 0


def test_a_second_run_has_nothing_to_do_and_a_resumed_one_equals_an_unbroken_one(make_job: MakeJob) -> None:
    job = make_job()
    dump(job)
    whole = tree(job.store.path)
    assert dump(job).shards_written == 0
    (job.store.path / "commits" / "00000001.json").unlink()  # as if killed before the second shard
    assert dump(job).shards_written == 1
    assert tree(job.store.path) == whole


def test_other_settings_on_the_same_store_are_refused_with_both_values(make_job: MakeJob) -> None:
    job = make_job()
    dump(job)
    before = tree(job.store.path)
    other = replace(job, store=job.store.model_copy(update={"attention": "float16"}))
    with pytest.raises(StoreError, match=r"codecs.attention is float32 in the store, float16 asked for"):
        dump(other)
    with pytest.raises(StoreError, match=r"fingerprint.template is v1:1 in the store, plain:1 asked for"):
        dump(replace(job, template="plain"))
    assert tree(job.store.path) == before


BAD_SAMPLES = {
    "missing": ({"image": "none.png"}, "cannot be read"),
    "truncated": ({"image": "cut.jpg"}, "cut.jpg: broken image"),
    "no-image-mark": ({"image": "rocket.jpg", "value": "hi"}, "0 <image>"),
    "doubled-mark": ({"image": "rocket.jpg", "value": "<image> <image>"}, "2 <image>"),
    "mark-without-image": ({"value": "<image>\nhi"}, "1 <image>"),
    "empty": ({"conversations": []}, "empty conversation"),
    "outside": ({"image": "../mobilevlm_v2_tiny/v1.json"}, "leaves the image folder"),
}


def bad_entry(name: str) -> dict[str, object]:
    spec = dict(BAD_SAMPLES[name][0])
    value = spec.pop("value", "<image>\nhi")
    turns = [{"from": "human", "value": value}, {"from": "gpt", "value": "ho"}]
    return {"id": name, "conversations": turns, **spec}


@pytest.fixture
def with_bad_samples(make_job: MakeJob, golden: Path, golden_images: Path, tmp_path: Path) -> Callable[..., DumpJob]:
    images = tmp_path / "images"
    shutil.copytree(golden_images, images)
    (images / "cut.jpg").write_bytes((golden_images / "rocket.jpg").read_bytes()[:30000])
    good = json.loads((golden / "v1.json").read_text())
    entries = [*good, *map(bad_entry, BAD_SAMPLES)]

    def make(**store: Any) -> DumpJob:
        job = make_job(entries, **store)
        return replace(job, data=(replace(job.data[0], images=images),))

    return make


def test_unusable_samples_are_listed_and_the_others_kept(with_bad_samples: Callable[..., DumpJob]) -> None:
    job = with_bad_samples()
    result = dump(job)
    assert result.num_records == 4 and verify_store(job.store.path, deep=True).ok
    reasons = {sample_id: reason for _, sample_id, reason in result.quarantined}
    assert reasons.keys() == BAD_SAMPLES.keys()
    for name, (_, part) in BAD_SAMPLES.items():
        assert part in reasons[name] and "\n" not in reasons[name]


def test_on_error_stop_and_max_errors_end_the_run(with_bad_samples: Callable[..., DumpJob], tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"data.json: sample '.*' \(index \d+\): .*on_error is 'stop'"):
        dump(with_bad_samples(on_error="stop"))
    with pytest.raises(InputError, match=r"3 unusable samples, store.max_errors is 2"):
        dump(with_bad_samples(max_errors=2, path=tmp_path / "other"))
    for store in (tmp_path / "store", tmp_path / "other"):
        assert not list((store / "shards").glob(".tmp*"))  # nothing half-written


def test_overlong_samples_are_dropped_not_cut(make_job: MakeJob) -> None:
    job = make_job(max_tokens=300)
    result = dump(job)
    assert result.num_records + len(result.quarantined) == 4 and result.quarantined
    assert all("more than max_tokens 300" in reason for _, _, reason in result.quarantined)
    assert max(StoreReader(job.store.path).sequence_lengths) <= 300


def test_no_usable_sample_at_all_is_an_error(make_job: MakeJob, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none of 1 samples is usable, the first \('empty'\): empty conversation"):
        dump(make_job([bad_entry("empty")]))
    with pytest.raises(InputError, match=r"none of 2 samples is usable, the first \('empty'\): empty conversation"):
        dump(make_job([bad_entry("empty"), bad_entry("mark-without-image")], path=tmp_path / "two"))
    films = [
        bad_entry("empty") | {"conversations": [{"from": "human", "value": "a"}], "video": f"{n}.mp4"} for n in "ab"
    ]
    with pytest.raises(InputError, match=r"none of 2 samples is usable, all for one reason: key 'video' is not read"):
        dump(make_job(films, path=tmp_path / "films"))
    with pytest.raises(InputError, match="contains no conversations"):
        dump(make_job([]))


def poison(monkeypatch: pytest.MonkeyPatch, value: float, where: str) -> None:
    """A teacher that gives `value` in one number of one sample: the shortest, ft-2 (the only one without an image)."""
    true_hidden, true_vision = MobileVLM.decoder_states, MobileVLM.encode_images

    def decoder_states(self: MobileVLM, embeds: Tensor) -> Tensor:
        hidden = true_hidden(self, embeds)
        if where == "hidden":
            hidden[-1, :, 0] = value  # the batch's last row is its shortest sample
        return hidden

    def encode_images(self: MobileVLM, images: Any, samples: Any = None) -> Vision:
        vision = true_vision(self, images, samples)
        if where == "vision":
            vision.embeddings_PD[7, 3] = value
        return vision

    monkeypatch.setattr(MobileVLM, "decoder_states", decoder_states)
    monkeypatch.setattr(MobileVLM, "encode_images", encode_images)


@pytest.mark.parametrize("logits", [{"kind": "full"}, {"kind": "hidden"}, {"kind": "nucleus"}, {"kind": "sampled"}])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_sample_with_values_that_are_not_finite_is_listed(
    make_job: MakeJob, monkeypatch: pytest.MonkeyPatch, value: float, logits: dict[str, str]
) -> None:
    poison(monkeypatch, value, "hidden")
    job = make_job(batch=4, shard_size=4, logits=logits)
    result = dump(job)
    assert [sample_id for _, sample_id, _ in result.quarantined] == ["ft-2"]
    assert "NaN or infinite" in result.quarantined[0][2] and result.num_records == 3
    assert verify_store(job.store.path, deep=True).ok


@pytest.mark.parametrize(
    ("codec", "value", "reason"),
    [
        ("float32", float("nan"), "vision_embeddings has values among its 18432 that are NaN or infinite"),
        ("float16", 1e5, "float16 holds values up to 65504, found 100000; store float32 instead"),
        ("int8_channel", 9e6, "int8_channel holds values up to 8.31901e.06, found 9e.06; store bfloat16 instead"),
    ],
)
def test_values_too_large_for_the_codec_are_listed(
    make_job: MakeJob, monkeypatch: pytest.MonkeyPatch, codec: str, value: float, reason: str
) -> None:
    poison(monkeypatch, value, "vision")
    attention = {"attention": "none", "vision_top": "none", "logits": {"kind": "none"}}  # so that nothing else breaks
    result = dump(make_job(batch=1, vision_all=codec, **attention))
    assert result.num_records == 1 and len(result.quarantined) == 3
    assert all(re.search(reason, listed[2]) for listed in result.quarantined)
