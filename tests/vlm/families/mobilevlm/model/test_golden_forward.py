"""Tokens, pixels and outputs equal to the original implementation on its golden samples."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from alignkd.vlm.data.images import read_images
from alignkd.vlm.data.open import load_samples
from alignkd.vlm.data.sample import Sample
from alignkd.vlm.families.mobilevlm.model.mobilevlm import MobileVLM
from alignkd.vlm.families.mobilevlm.weights.checkpoint import load_model, load_preparation
from alignkd.vlm.inputs.batch import collate_sequences, pad_positions
from alignkd.vlm.inputs.examples import Example

SAMPLES = ["pt-0", "pt-1", "pt-2", "ft-0", "ft-1", "ft-2", "ft-3"]


@pytest.fixture(scope="module")
def models(golden: Path) -> dict[str, MobileVLM]:
    return {who: load_model(golden / who, vision_config=golden / "clip") for who in ("teacher", "student")}


def example_of(golden: Path, golden_images: Path, sample_id: str) -> tuple[Sample, Example]:
    template = "plain" if sample_id.startswith("pt") else "v1"
    builder = load_preparation(golden / "teacher", template=template, vision_config=golden / "clip")
    (sample,) = [entry for entry in load_samples(golden / f"{template}.json") if entry.id == sample_id]
    return sample, builder.build(sample.turns, read_images(golden_images, sample.images))


@pytest.mark.parametrize("sample_id", SAMPLES)
def test_tokens_labels_positions_and_pixels_are_exact(golden: Path, golden_images: Path, sample_id: str) -> None:
    _, example = example_of(golden, golden_images, sample_id)
    expected = {name: tensor.numpy() for name, tensor in load_file(golden / f"{sample_id}.safetensors").items()}
    np.testing.assert_array_equal(example.input_ids, expected["input_ids"])
    np.testing.assert_array_equal(example.labels, expected["labels"])
    np.testing.assert_array_equal(example.positions.supervised_positions, expected["supervised_positions"])
    np.testing.assert_array_equal(example.positions.next_labels, expected["supervised_labels"])
    np.testing.assert_array_equal(example.positions.text_positions, expected["text_positions"])
    for image in example.images:
        np.testing.assert_array_equal(example.positions.vision_positions, expected["vision_positions"])
        np.testing.assert_array_equal(example.positions.tqv_query_positions, expected["tqv_query_positions"])
        np.testing.assert_array_equal(image["pixel_values"][:, ::8, ::8], expected["pixel_values_stride8"])


@pytest.mark.parametrize("who", ["teacher", "student"])
@pytest.mark.parametrize("sample_id", SAMPLES)
def test_outputs_equal_the_original(
    golden: Path, golden_images: Path, models: dict[str, MobileVLM], sample_id: str, who: str
) -> None:
    _, example = example_of(golden, golden_images, sample_id)
    expected, model = load_file(golden / f"{sample_id}.safetensors"), models[who]
    batch = collate_sequences([example])
    with torch.no_grad():
        vision = model.encode_images(batch.images) if batch.images else None
        embeds = model.embed(batch, vision)
        torch.testing.assert_close(model(batch), expected[f"{who}.logits"], rtol=1e-4, atol=1e-5)
        if vision is None:
            return
        rows, _ = pad_positions([example.positions.tqv_query_positions])
        cols, _ = pad_positions([example.positions.vision_positions])
        attention = model.first_layer_attention(embeds, rows, cols)[0]
    torch.testing.assert_close(vision.embeddings_PD, expected[f"{who}.vision_embeddings"], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(attention, expected[f"{who}.layer0_tqv_attention"], rtol=1e-4, atol=1e-7)


def test_padding_in_a_mixed_batch_changes_nothing(
    golden: Path, golden_images: Path, models: dict[str, MobileVLM]
) -> None:
    """One batch of all fine-tuning samples, text-only among them, against each alone."""
    examples = [example_of(golden, golden_images, name)[1] for name in ("ft-0", "ft-1", "ft-2", "ft-3")]
    with torch.no_grad():
        together = models["teacher"](collate_sequences(examples))
        alone = torch.cat([models["teacher"](collate_sequences([example])) for example in examples])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)
