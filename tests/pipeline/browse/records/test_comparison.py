"""Two stores, and a teacher and a student, side by side: distances by hand, and what `alignkd shards diff` says."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from alignkd.pipeline.browse.records.comparison import compare, compare_student
from alignkd.pipeline.browse.records.distance import known, total_variation
from alignkd.pipeline.browse.records.views import RecordViews
from alignkd.storage import StoreReader
from alignkd.storage.errors import StoreError
from alignkd.storage.tools.compare.diff import diff_stores
from alignkd.storage.tools.convert import convert_store


def probabilities(reader: StoreReader, position: int) -> np.ndarray[Any, Any]:
    return np.exp(reader.logprobs(position).dense().astype(np.float64))


def test_a_copy_has_no_difference(exact: StoreReader, tmp_path: Path) -> None:
    convert_store(exact.path, tmp_path / "copy", "webdataset")
    copy = StoreReader(tmp_path / "copy")
    assert diff_stores(exact, copy).equal
    for key in exact.keys:
        found = compare(RecordViews(exact), RecordViews(copy), key)
        assert found.differences and not found.notes and not any(one.records for one in found.fields)
        for one in found.differences:
            assert one.number == one.other and one.total_variation in (0, None) and one.attention in (0, None)
        json.dumps(found.as_json(), allow_nan=False)


def test_two_teachers_differ_as_their_stores_do(exact: StoreReader, other: StoreReader) -> None:
    report = {one.field: one for one in diff_stores(exact, other).fields}
    field, largest = next(name for name, one in report.items() if one.max_abs), 0.0
    for position, record in enumerate(exact):
        [there] = other.find(key=record.key)
        found = compare(RecordViews(exact), RecordViews(other), record.key)
        expected = 0.5 * np.abs(probabilities(exact, position) - probabilities(other, there)).sum(1)
        distances = [one.total_variation for one in found.differences if one.total_variation is not None]
        np.testing.assert_allclose(distances, expected, rtol=1e-4)
        attention = [one.attention for one in found.differences if one.attention is not None]
        if not record.has_image:
            assert not attention and not found.layers
            continue
        ours, theirs = (
            np.asarray(store[at].more["attention_layers_tqv"]) for store, at in ((exact, position), (other, there))
        )
        heads = [store.manifest.shapes.num_heads for store in (exact, other)]
        assert [(at.layer, at.heads) for at in found.layers] == [(0, min(heads)), (1, min(heads))]
        means = [values[:, :count].mean(1) for values, count in zip((ours, theirs), heads, strict=True)]
        np.testing.assert_allclose(attention, np.abs(means[0] - means[1]).sum(1), rtol=1e-4)
        largest = max([largest, *(one.max_abs for one in found.fields if one.field == field and one.max_abs)])
    assert largest == report[field].max_abs


def test_of_truncated_distributions_the_rest_is_one_outcome(exact: StoreReader, compact: StoreReader) -> None:
    """By hand with a loop over tokens; and never more than the distance of whole distributions."""
    position = int(np.flatnonzero(compact.has_image)[0])
    [there] = exact.find(key=compact.keys[position])
    found = compare(RecordViews(compact), RecordViews(exact), compact.keys[position])
    kept, dense = compact.logprobs(position), probabilities(exact, there)
    distances = [one.total_variation for one in found.differences if one.total_variation is not None]
    assert len(distances) == len(dense)
    for place, distance in enumerate(distances):
        span = slice(kept.offsets[place], kept.offsets[place + 1])  # type: ignore[union-attr]  # nucleus
        pairs = zip(kept.ids[span], np.exp(kept.logprobs[span].astype(np.float64)), strict=True)  # type: ignore[union-attr]
        total, rest = 0.0, [1.0, 1.0]
        for token, probability in pairs:
            total += abs(probability - dense[place, token])
            rest = [rest[0] - probability, rest[1] - dense[place, token]]
        assert distance == pytest.approx(0.5 * (total + abs(rest[0] - rest[1])), abs=1e-6)
        assert distance < 0.02  # the same teacher, rounded
    rng = np.random.default_rng(0)
    for _ in range(20):
        p, q = rng.dirichlet(np.ones(9)), rng.dirichlet(np.ones(9))
        ids = rng.permutation(9)
        whole = 0.5 * np.abs(p - q).sum()
        assert total_variation(known(ids, p[ids]), known(np.arange(9), q)) == pytest.approx(whole)
        part = rng.permutation(9)[:4]
        assert total_variation(known(part, p[part]), known(ids, q[ids])) <= whole + 1e-12


def test_the_student_beside_the_teacher(exact: StoreReader, other: StoreReader, golden: Path) -> None:
    """A store that the student's checkpoint made as a teacher gives the same differences."""
    views = RecordViews(exact, student=golden / "student", student_vision_config=golden / "clip")
    for position, record in enumerate(exact):
        beside, stores = compare_student(views, position), compare(RecordViews(exact), RecordViews(other), record.key)
        assert [(at.layer, at.heads) for at in beside.layers] == [(at.layer, at.heads) for at in stores.layers]
        for name in ("total_variation", "attention"):
            ours, theirs = (
                np.array([getattr(one, name) for one in found.differences], float) for found in (beside, stores)
            )
            np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-6)  # NaN where there is none


def test_a_record_that_one_store_lacks(exact: StoreReader, compact: StoreReader) -> None:
    with pytest.raises(StoreError, match="no record with key 'ab'"):
        compare(RecordViews(exact), RecordViews(compact), "ab")
