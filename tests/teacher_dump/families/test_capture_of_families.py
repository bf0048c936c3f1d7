"""Targets of models of transformers: those of a batch are those of each sample alone, with and without kept images."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tiny_families

from alignkd.storage.codecs.settings import LogitsCodec
from alignkd.teacher_dump.preparation import PreparationThreads, Prepared
from alignkd.teacher_dump.settings.store import StoreConfig
from alignkd.teacher_dump.targets.attention import VISION_TOP_INDEX
from alignkd.teacher_dump.targets.capture import Capture, Captured
from alignkd.vlm.attention.focus import VISION_TOP_TOKENS
from alignkd.vlm.data.open import load_samples
from alignkd.vlm.families.family import VisionLanguageModel
from alignkd.vlm.families.open import open_checkpoint

EXACT = StoreConfig(
    path="unused", attention="float32", vision_top="float32", vision_all="float32", logits=LogitsCodec(kind="full")
)
Arrays = dict[str, np.ndarray]
Teacher = tuple[VisionLanguageModel, list[Prepared]]


@pytest.fixture(scope="module", params=tiny_families.NINE)
def teacher(request: pytest.FixtureRequest, family_teacher: Callable[[str], Path], family_data: Path) -> Teacher:
    """A loaded model, and the data set prepared for it."""
    opened = open_checkpoint(family_teacher(request.param))
    with PreparationThreads(opened.preparation(), family_data / "images", 2) as threads:
        samples = threads.prepare(load_samples(family_data / "data.json", family_data / "images"))
    return opened.load_model(), samples


def arrays_of(captured: Captured) -> Arrays:
    found = {"logits": captured.logits.arrays.wait()[""][captured.logits.rows]}
    for number, image in enumerate(captured.vision):
        found[f"image {number}"] = image.wait()[""]
    if captured.attention is not None and captured.vision_top is not None:
        top = captured.vision_top.wait()
        found |= {"attention": captured.attention.wait()[""], "top": top[""], "index": top[VISION_TOP_INDEX]}
    return found


def check_shapes(model: VisionLanguageModel, sample: Prepared, found: Arrays) -> None:
    positions, config = sample.example.positions, model.config
    assert found["logits"].shape == (len(positions.supervised_positions), config.vocab_size)
    if not positions.num_images:
        assert found.keys() == {"logits"}
        return
    P, K = len(positions.vision_positions), min(VISION_TOP_TOKENS, len(positions.vision_positions))
    assert found["attention"].shape == (1, len(positions.tqv_query_positions), config.num_heads, P)
    assert found["index"].shape == (K,) and found["top"].shape == (K, config.hidden_size)
    for number, count in enumerate(positions.tokens_of_image):
        assert found[f"image {number}"].shape == (count, config.hidden_size)
    every = np.concatenate([found[f"image {number}"] for number in range(positions.num_images)])
    np.testing.assert_array_equal(every[found["index"]], found["top"])


def test_a_batch_with_kept_images_is_each_sample_alone(teacher: Teacher) -> None:
    model, samples = teacher
    capture = Capture(model, EXACT)
    capture.begin_window([])
    alone = [arrays_of(capture([sample])[0]) for sample in samples]
    capture.begin_window(samples)
    together = [arrays_of(captured) for batch in (samples[:5], samples[5:]) for captured in capture(batch)]
    for sample, one, other in zip(samples, alone, together, strict=True):
        check_shapes(model, sample, one)
        assert one.keys() == other.keys()
        for name, values in one.items():
            np.testing.assert_allclose(other[name], values, rtol=1e-4, atol=2e-5, err_msg=f"{sample.sample.id} {name}")


def test_attention_in_chunks_and_groups_is_attention_at_once(teacher: Teacher, monkeypatch: pytest.MonkeyPatch) -> None:
    """The bounds on memory change nothing but the order of the computation."""
    model, samples = teacher
    capture = Capture(model, EXACT)
    whole = [arrays_of(captured) for captured in capture(samples)]
    module = "alignkd.teacher_dump.targets.attention"
    monkeypatch.setattr(f"{module}.chunk_bytes_on", lambda _: 1)
    monkeypatch.setattr(f"{module}.ENCODED_BYTES", 1)
    for one, other in zip(whole, (arrays_of(captured) for captured in capture(samples)), strict=True):
        for name, values in one.items():
            np.testing.assert_allclose(other[name], values, rtol=1e-5, atol=1e-6, err_msg=name)
