"""A model of transformers whose images have different numbers of tokens: stem, student, comparison of records."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import family_fixtures
import numpy as np
import pytest
import tiny_data

from alignkd.pipeline.browse.records.comparison import compare, compare_student
from alignkd.pipeline.browse.records.views import RecordViews
from alignkd.storage import StoreReader
from alignkd.teacher_dump.dump import dump
from alignkd.teacher_dump.job import DumpJob
from alignkd.teacher_dump.settings.store import StoreConfig
from alignkd.teacher_dump.settings.teacher import TeacherConfig
from alignkd.vlm.data.source import DataSet

data, checkpoint = family_fixtures.data, family_fixtures.checkpoint
TEACHER = {"seed": 3, "hidden_size": 64, "heads": 4, "tower_seed": 9}
STUDENT = {"seed": 4, "hidden_size": 32, "heads": 2, "tower_seed": 9}
FULL = {"kind": "full", "dtype": "float32"}


@pytest.mark.parametrize("family", ["smolvlm"])
def test_each_side_equals_a_store_of_its_own(
    family: str, data: tiny_data.TinyData, checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    def made(name: str, model: dict[str, Any], **store: Any) -> StoreReader:
        teacher = TeacherConfig(checkpoint=str(checkpoint(family, **model)), sanity="off", device="cpu")
        settings = {"path": str(tmp_path / name), "vision_all": "none", "vision_top": "none", "logits": FULL, **store}
        job = DumpJob(
            data=(DataSet(path=data.conversations, images=data.images),),
            template=None,
            max_tokens=None,
            teacher=teacher,
            store=StoreConfig(**settings),
        )
        dump(job)
        return StoreReader(tmp_path / name)

    exact, stem = made("exact", TEACHER, attention="float32"), made("stem", TEACHER, attention="stem")
    student = made("student", STUDENT, attention="float32")
    stored, other = RecordViews(exact), RecordViews(student)
    # the student's checkpoint has the teacher's tower
    computed = RecordViews(stem, checkpoint=checkpoint(family, **STUDENT), student=checkpoint(family, **STUDENT))
    seen = set()
    for position, record in enumerate(stem):
        [there] = exact.find(index=record.index)
        page = computed.record_page(position)
        assert [token for token in page.tokens if token.image is None] == [
            token for token in stored.record_page(there).tokens if token.image is None
        ]
        if not record.has_image:
            continue
        seen.add(record.num_images)
        for options in ({}, {"head": 1, "query": int(record.tqv_query_positions[0])}):
            ours, theirs = computed.attention(position, **options), stored.attention(there, **options)
            assert ours.source == "stem" and theirs.source == "stored"
            for one, two in zip(ours.maps, theirs.maps, strict=True):
                assert one.shape == two.shape
                np.testing.assert_allclose(one, two, rtol=1e-4, atol=1e-7)
        beside = compare_student(computed, position)
        stores = compare(stored, other, record.key)
        for name in ("total_variation", "attention"):
            values = [[getattr(one, name) for one in found.differences] for found in (beside, stores)]
            np.testing.assert_allclose(np.array(values[0], float), np.array(values[1], float), rtol=1e-3, atol=1e-6)
        [at] = [at for at in range(len(student)) if int(student.dataset_index[at]) == record.index]
        ours, theirs = computed.attention(position, student=True), other.attention(at)
        np.testing.assert_allclose(ours.maps[0], theirs.maps[0], rtol=1e-3, atol=1e-7)
    assert {1, 2} <= seen
