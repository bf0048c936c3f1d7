"""A student beside the teacher equals the original implementation, and training's own pass."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from alignkd.pipeline.browse.records.views import RecordViews
from alignkd.storage import StoreReader
from alignkd.vlm.errors import InputError


@pytest.fixture(scope="module")
def views(exact: StoreReader, golden: Path) -> RecordViews:
    return RecordViews(exact, student=golden / "student", student_vision_config=golden / "clip")


def test_it_equals_the_original_code(views: RecordViews, exact: StoreReader, golden: Path) -> None:
    golden_ids = {file.stem for file in golden.glob("ft-*.safetensors")}
    for position, record in enumerate(exact):
        page = views.student_page(position)
        if not record.has_image:
            assert page.no_attention == "the record has no image"
        if record.id not in golden_ids:
            continue
        golden_ids.remove(record.id)
        expected = load_file(golden / f"{record.id}.safetensors")
        logits = expected["student.logits"].astype(np.float64)
        probs = np.exp(logits - logits.max(1, keepdims=True))
        probs /= probs.sum(1, keepdims=True)
        assert len(page.predictions) == len(probs)
        labels = [found.label for found in page.predictions]
        shown = [found.label_probability or 0 for found in page.predictions]
        np.testing.assert_allclose(shown, probs[np.arange(len(probs)), labels], rtol=1e-3)
        best = np.array([[entry.probability for entry in found.top] for found in page.predictions])
        np.testing.assert_allclose(best, -np.sort(-probs, axis=1)[:, : best.shape[1]], rtol=1e-3)
        assert all(found.tail_mass == 0 and found.label_rank for found in page.predictions)
        teachers = [token.prediction for token in views.record_page(position).tokens if token.supervised]
        assert [(one.position, one.label) for one in teachers if one] == [
            (one.position, one.label) for one in page.predictions
        ]
        if not record.has_image:
            continue
        attention = expected["student.layer0_tqv_attention"]
        assert page.layers[0].layer == 0 and page.layers[0].heads == len(attention) and page.no_attention is None
        for options, values in (
            ({}, attention.mean((0, 1))),
            ({"head": 1, "query": int(record.tqv_query_positions[3])}, attention[1, 3]),
        ):
            found = views.attention(position, student=True, **options)
            assert found.source == "student"
            shown = np.concatenate([one.ravel() for one in found.maps])
            np.testing.assert_allclose(shown, values, rtol=1e-3, atol=1e-7)
    assert not golden_ids
    shown = int(np.flatnonzero(exact.num_images > 1)[0])
    assert views.view_png(shown, student=True).startswith(b"\x89PNG")


def test_another_layer_equals_the_layers_of_a_pass_of_training(
    views: RecordViews, exact: StoreReader, golden: Path
) -> None:
    import torch

    from alignkd.student_train.data.collate import collate
    from alignkd.student_train.data.samples.dataset import CachedDataset
    from alignkd.vlm.families.open import open_checkpoint

    position = int(np.flatnonzero(exact.has_image)[0])
    checkpoint = open_checkpoint(golden / "student", vision_config=golden / "clip")
    model, named = checkpoint.load_model(), exact.manifest.read_from
    assert named is not None
    dataset = CachedDataset(exact, checkpoint.preparation("v1"), named.image_folder(0))
    batch = collate([dataset[position]], targets=(), attention_pairs="tqv")
    record = exact[position]
    with torch.no_grad(), model.watched_layers([1]) as layers:
        model.hidden_states(batch.sequences, model.encode_images(batch.sequences.images))
        every = torch.arange(record.sequence_length)[None]
        whole = layers[1].attention(every, every)[0].numpy()
    expected = whole[:, record.tqv_query_positions][:, :, record.vision_positions]
    found = views.attention(position, layer=1, head=2, student=True)
    shown = np.concatenate([one.ravel() for one in found.maps])
    np.testing.assert_allclose(shown, expected[2].mean(0), rtol=1e-4, atol=1e-8)
    with pytest.raises(InputError, match="the student has attention in layers 0"):
        views.attention(position, layer=99, student=True)


def test_a_checkpoint_that_cannot_stand_beside_it_is_told(
    exact: StoreReader, golden: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    position = int(np.flatnonzero(exact.has_image)[0])
    with pytest.raises(InputError, match="no student was given"):
        RecordViews(exact).student_page(position)
    absent = RecordViews(exact, student=tmp_path / "absent")
    for _ in range(2):
        with pytest.raises(InputError, match="absent"):
            absent.student_page(position)
    fingerprint: dict[str, Any] = {**exact.manifest.fingerprint, "tokenizer": "f" * 64}
    reader = StoreReader(exact.path)
    monkeypatch.setattr(reader, "manifest", exact.manifest.changed(fingerprint=fingerprint))
    other = RecordViews(reader, student=golden / "student", student_vision_config=golden / "clip")
    with pytest.raises(InputError, match=r"reads samples otherwise .*: tokenizer is ffff"):
        other.student_page(position)
