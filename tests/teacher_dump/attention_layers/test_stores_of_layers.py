"""Stores with attention of chosen layers: resumed, refused, verified, compared, converted and merged as others are."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from alignkd.storage import StoreError, StoreReader, verify_store
from alignkd.storage.places import open_files
from alignkd.storage.schema.targets.attention import NAMES
from alignkd.storage.tools.compare.diff import diff_stores
from alignkd.storage.tools.verify.plausibility import check_plausibility
from alignkd.teacher_dump.dump import dump
from alignkd.teacher_dump.job import DumpJob
from alignkd.teacher_dump.settings.store import StoreConfig
from alignkd.vlm.errors import InputError

MakeJob = Callable[..., DumpJob]
LAYERS = {"layers": [0, 2], "pairs": "all", "codec": "sqrt_u8"}


def tree(path: Path) -> dict[str, bytes]:
    return {str(file.relative_to(path)): file.read_bytes() for file in sorted(path.rglob("*")) if file.is_file()}


def with_attention(job: DumpJob, attention: Any) -> DumpJob:
    settings = job.store.model_dump() | {"attention": attention}
    return replace(job, store=StoreConfig(**settings))


@pytest.mark.parametrize("backend", ["zarr", "webdataset"])
def test_a_resumed_dump_equals_an_unbroken_one(make_job: MakeJob, backend: str) -> None:
    job = make_job(attention=LAYERS, backend=backend)
    dump(job)
    whole = tree(job.store.path)
    (job.store.path / "commits" / "00000001.json").unlink()
    assert dump(job).shards_written == 1
    assert tree(job.store.path) == whole


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"layers": [0, 3]}, r"targets.attention_layers_tqv.layers is \[0, 2\] in the store, \[0, 3\] asked for"),
        ({"heads": "mean"}, "targets.attention_layers_tqv.heads is 8 in the store, 1 asked for"),
        ({"pairs": "tqv"}, "targets.attention_layers_vqv.name is attention_layers_vqv in the store, absent asked for"),
        ({"codec": "float16"}, "targets.attention_layers_tqv.codec is sqrt_u8 in the store, float16 asked for"),
    ],
)
def test_other_layers_are_another_store(make_job: MakeJob, changed: dict[str, Any], named: str) -> None:
    job = make_job(attention=LAYERS)
    dump(job)
    before = tree(job.store.path)
    with pytest.raises(StoreError, match=named):
        dump(with_attention(job, LAYERS | changed))
    with pytest.raises(StoreError, match=r"codecs.attention is none in the store, float32 asked for"):
        dump(with_attention(job, "float32"))
    assert tree(job.store.path) == before


@pytest.mark.parametrize(
    ("attention", "named"),
    [
        ({"layers": [0, 4]}, "store.attention.layers: decoder layer 4 does not exist, there are 4; .* are 0 to 3"),
        ({"layers": "51%-74%"}, "no layer of the band 51%-74% of 4 decoder layers has attention"),
        ({"layers": [0], "heads": {"groups": 3}}, "3 groups do not divide the teacher's 8 heads"),
    ],
)
def test_layers_that_the_teacher_lacks_are_refused_before_a_store_is_made(
    make_job: MakeJob, attention: Any, named: str
) -> None:
    job = make_job(attention=attention)
    with pytest.raises(InputError, match=named):
        dump(job)
    assert not Path(job.store.path).exists()


def test_both_layouts_hold_the_same(make_job: MakeJob, tmp_path: Path) -> None:
    job = make_job(attention=LAYERS)
    dump(job)
    other = replace(job, store=job.store.model_copy(update={"backend": "webdataset", "path": tmp_path / "tars"}))
    dump(other)
    report = diff_stores(StoreReader(job.store.path), StoreReader(tmp_path / "tars"))
    assert report.fields == [] and report.matched == len(StoreReader(job.store.path))


def test_deep_verification_finds_rows_that_are_no_probabilities(make_job: MakeJob, monkeypatch: Any) -> None:
    job = make_job(attention=LAYERS)
    dump(job)
    assert verify_store(job.store.path, deep=True).ok
    reader = StoreReader(job.store.path)
    found = check_plausibility(open_files(job.store.path)).attention
    rows = sum(
        (len(record.tqv_query_positions) + len(record.vision_positions)) * 2 * 8
        for record in (reader[number] for number in range(len(reader)))
        if record.has_image
    )
    assert found.rows == rows and found.problems() == [] and 0 < found.smallest_sum < found.largest_sum
    spoiled = "alignkd.teacher_dump.targets.attention.head_means"
    monkeypatch.setattr(spoiled, lambda probs_HRC, heads: probs_HRC + 0.5)
    dump(replace(job, store=job.store.model_copy(update={"path": Path(job.store.path).parent / "spoiled"})))
    problems = check_plausibility(open_files(Path(job.store.path).parent / "spoiled")).problems
    assert problems and all("these are not probabilities" in problem.message for problem in problems)


def test_targets_of_the_stem_are_named_and_not_stored(make_job: MakeJob) -> None:
    job = make_job(attention={"layers": [0], "codec": "stem"})
    dump(job)
    reader = StoreReader(job.store.path)
    assert reader.manifest.from_stem == (NAMES["tqv"],) and "stem.safetensors" in reader.manifest.attachments
    target = reader.manifest.more[0]
    assert (target.layers, target.heads, target.source, target.codec) == ((0,), 8, "stem", None)
    assert all(reader[number].more.keys() == {"sequence_logprob"} for number in range(len(reader)))
    assert verify_store(job.store.path, deep=True).ok
    assert np.isinf(check_plausibility(open_files(job.store.path)).attention.smallest)
