"""The target vision_text_affinity against the live model, in both layouts, batched and alone."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_data
import tiny_families
import torch
from click.testing import CliRunner
from numpy.typing import NDArray

from alignkd.pipeline.cli import main
from alignkd.storage import Record, StoreReader, as_float32, verify_store
from alignkd.storage.tools.compare.diff import diff_stores
from alignkd.storage.tools.stats import store_stats
from alignkd.storage.tools.target_bytes import bytes_per_record
from alignkd.teacher_dump.dump import dump, load_teacher
from alignkd.teacher_dump.job import DumpJob
from alignkd.teacher_dump.settings.store import StoreConfig
from alignkd.teacher_dump.settings.teacher import TeacherConfig
from alignkd.vlm.data.source import DataSet
from alignkd.vlm.data.turns import turns_of
from alignkd.vlm.families.family import VisionLanguageModel
from alignkd.vlm.inputs.batch import collate_sequences
from alignkd.vlm.inputs.examples import Preparation

AFFINITY = "vision_text_affinity"
NOTHING = {"attention": "none", "vision_top": "none", "vision_all": "none", "logits": {"kind": "none"}}
MakeJob = Callable[..., DumpJob]


@pytest.fixture
def make_job(golden: Path, tmp_path: Path) -> MakeJob:
    data = tiny_data.write(tmp_path)

    def make(family: str, path: str = "store", batch: int = 3, **settings: Any) -> DumpJob:
        if family == "mobilevlm":
            folder, tower = golden / "teacher", golden / "clip"
        else:
            folder, tower = tiny_families.build(family, tmp_path / family, seed=1), None
        return DumpJob(
            data=(DataSet(path=data.conversations, images=data.images),),
            template="v1" if family == "mobilevlm" else None,
            max_tokens=4096,
            teacher=TeacherConfig(checkpoint=str(folder), vision_config=tower, batch=batch, sanity="off"),
            store=StoreConfig(**{"path": tmp_path / path, "shard_size": 4, **NOTHING, **settings}),
        )

    return make


def records_of(job: DumpJob) -> list[Record]:
    reader = StoreReader(job.store.path)
    return [reader[number] for number in range(len(reader))]


@torch.no_grad()
def live_cosines(
    model: VisionLanguageModel, preparation: Preparation, record: Record, images: Path
) -> NDArray[np.float64]:
    """Cosines [Q, P] of one sample alone, by a loop over its text."""
    files = [(images / image).read_bytes() for image in record.images]
    batch = collate_sequences([preparation.build(turns_of(record.conversations), files)])
    vision = model.encode_images(batch.images, batch.image_samples_I.tolist())
    states = model.hidden_states(batch, vision)[0].double().numpy()
    unit = states / np.linalg.norm(states, axis=1, keepdims=True)
    text = [
        place
        for place in range(record.sequence_length)
        if place not in record.vision_positions and place > record.vision_positions.max()
    ]
    return np.array([unit[place] @ unit[record.vision_positions].T for place in text])


# the original layout; tiles with text between them; layers that see images again
@pytest.mark.parametrize("family", ["mobilevlm", "smolvlm", "qwen3_vl"])
def test_cosines_are_those_of_the_live_model(family: str, make_job: MakeJob) -> None:
    job = make_job(family, vision_text_affinity="float32")
    dump(job)
    assert verify_store(job.store.path, deep=True).ok
    teacher = job.open_teacher()
    model, preparation = load_teacher(job, teacher), teacher.preparation(job.template, max_tokens=4096)
    assert job.data[0].images is not None
    seen = 0
    for record in records_of(job):
        assert (AFFINITY in record.more) == record.has_image
        if record.has_image:
            found = as_float32(record.more[AFFINITY])  # type: ignore[arg-type]
            assert found.shape == (len(record.tqv_query_positions), len(record.vision_positions))
            expected = live_cosines(model, preparation, record, job.data[0].images)
            np.testing.assert_allclose(found, expected, rtol=1e-4, atol=2e-5)
            seen += record.num_images > 1
    assert seen > 1


@pytest.mark.parametrize("codec", ["float16", "int8_unit"])
def test_layouts_batches_and_codecs(codec: str, make_job: MakeJob) -> None:
    exact = make_job("mobilevlm", "exact", vision_text_affinity="float32")
    whole = make_job("mobilevlm", vision_text_affinity=codec)
    single = make_job("mobilevlm", "single", batch=1, vision_text_affinity=codec, backend="webdataset")
    for job in (exact, whole, single):
        dump(job)
        assert verify_store(job.store.path, deep=True).ok
    for reference, one, other in zip(records_of(exact), records_of(whole), records_of(single), strict=True):
        assert one.more.keys() == other.more.keys() == reference.more.keys()
        if one.has_image:
            values, found, again = (as_float32(each.more[AFFINITY]) for each in (reference, one, other))  # type: ignore[arg-type]
            # half a step of 1 / 127, or half of the last of 11 bits
            limit = 0.0041 if codec == "int8_unit" else 2**-12 + 1e-5
            assert np.abs(found - values).max() < limit and np.abs(again - values).max() < limit + 1e-5
    # codecs of the same values differ by what they state
    readers = [StoreReader(job.store.path) for job in (exact, whole)]
    (field,) = (field for field in diff_stores(*readers).fields if field.field == f"more.{AFFINITY}")
    assert field.beyond == 0 and field.max_abs
    (column,) = (column for column in store_stats(readers[1]).columns if column.column == AFFINITY)
    values = sum(len(record.tqv_query_positions) * len(record.vision_positions) for record in records_of(whole))
    assert column.codec == codec and column.num_bytes == values * (1 if codec == "int8_unit" else 2)
    assert bytes_per_record(readers[1])[AFFINITY] > 0
    shown = CliRunner().invoke(main, ["shards", "show", str(whole.store.path), "--json"])
    assert AFFINITY in shown.output, shown.output


def test_a_shard_that_is_dumped_again_has_the_same_bytes(make_job: MakeJob) -> None:
    job = make_job("mobilevlm", vision_text_affinity="int8_unit", vision_states="bfloat16")
    dump(job)
    root = Path(job.store.path)
    before = {file: file.read_bytes() for file in sorted(root.rglob("*")) if file.is_file()}
    (root / "commits" / "00000001.json").unlink()
    assert dump(job).shards_written == 1
    assert {file: file.read_bytes() for file in sorted(root.rglob("*")) if file.is_file()} == before
