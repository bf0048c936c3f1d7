"""Samples with several images against a splice done by hand, in float64; and in batches with one image and none."""

import copy
from pathlib import Path

import numpy as np
import pytest
import torch

from alignkd.vlm.data.entries.entry import sample_of_entry
from alignkd.vlm.data.images import read_images
from alignkd.vlm.data.sample import Sample
from alignkd.vlm.errors import ImageError, SampleError
from alignkd.vlm.families.mobilevlm.inputs.preparation import MobileVLMPreparation
from alignkd.vlm.families.mobilevlm.model.mobilevlm import MobileVLM
from alignkd.vlm.families.mobilevlm.weights.checkpoint import load_model, load_preparation
from alignkd.vlm.inputs.batch import SequenceBatch, collate_sequences, pad_positions
from alignkd.vlm.inputs.examples import Example
from alignkd.vlm.inputs.labels import IGNORE_LABEL, IMAGE_TOKEN_ID

P = 144
SAMPLES = [
    (["coffee.png", "chelsea.png"], ["Which is a cat, <image> or <image>?", "The second."]),
    ([], ["Name a color.", "Green"]),
    (["rocket.jpg"], ["What is <image> this?", "A rocket", "Is it flying?", "Yes, upwards."]),
    (
        ["chelsea.png", "coffee.png", "chelsea.png"],
        ["<image><image>\nHow many cups?", "One", "And here?\n<image>", "No"],
    ),
]


def sample_of(number: int) -> Sample:
    images, values = SAMPLES[number]
    turns = [{"from": ("human", "gpt")[place % 2], "value": value} for place, value in enumerate(values)]
    return sample_of_entry(number, {"id": str(number), "image": images, "conversations": turns})


@pytest.fixture(scope="module")
def builder(golden: Path) -> MobileVLMPreparation:
    return load_preparation(golden / "teacher", template="v1", vision_config=golden / "clip")


@pytest.fixture(scope="module")
def model(golden: Path) -> MobileVLM:
    return load_model(golden / "teacher", vision_config=golden / "clip", dtype=torch.float64)


@pytest.fixture(scope="module")
def examples(builder: MobileVLMPreparation, golden_images: Path) -> list[Example]:
    samples = [sample_of(number) for number in range(len(SAMPLES))]
    return [builder.build(sample.turns, read_images(golden_images, sample.images)) for sample in samples]


def spliced_by_hand(
    model: MobileVLM, example: Example, files: list[bytes], builder: MobileVLMPreparation
) -> torch.Tensor:
    """One block of features per placeholder, in order, each image encoded alone: [L, D]."""
    pieces, files = [], list(files)
    for token in example.input_ids.tolist():
        if token == IMAGE_TOKEN_ID:
            pixels = torch.from_numpy(builder.image_processor(files.pop(0)))
            pieces.append(model.encode_images([{"pixel_values": pixels}]).embeddings_PD)
        else:
            pieces.append(model.model.embed_tokens.weight[token][None])
    assert not files
    return torch.cat(pieces)


@pytest.mark.parametrize("number", [0, 2, 3])
def test_equals_a_splice_by_hand(
    model: MobileVLM, builder: MobileVLMPreparation, examples: list[Example], golden_images: Path, number: int
) -> None:
    example, images = examples[number], SAMPLES[number][0]
    files = [(golden_images / image).read_bytes() for image in images]
    batch, positions = collate_sequences([example]), example.positions
    with torch.no_grad():
        expected = spliced_by_hand(model, example, files, builder)
        assert batch.image_samples_I.tolist() == [0] * len(images)
        embeds = model.embed(batch, model.encode_images(batch.images))
        torch.testing.assert_close(embeds[0], expected, rtol=1e-9, atol=1e-12)

        hidden = model.model(inputs_embeds=expected[None], use_cache=False).last_hidden_state[0]
        labels = np.concatenate(
            [
                [IGNORE_LABEL] * P if token == IMAGE_TOKEN_ID else [label]
                for token, label in zip(example.input_ids, example.labels, strict=True)
            ]
        )
        supervised = np.flatnonzero(labels[1:] != IGNORE_LABEL)
        torch.testing.assert_close(model(batch), model.lm_head(hidden[supervised]), rtol=1e-9, atol=1e-12)
        np.testing.assert_array_equal(positions.supervised_positions, supervised)

        # transformers' own full attention matrix
        eager = copy.deepcopy(model)
        eager.model.config._attn_implementation = "eager"
        [full, *_] = eager.model(inputs_embeds=expected[None], output_attentions=True, use_cache=False).attentions
        blocks = positions.attention_blocks("tqv")
        rows, cols = pad_positions([rows for rows, _ in blocks])[0], pad_positions([cols for _, cols in blocks])[0]
        got = model.first_layer_attention(embeds[batch.image_samples_I], rows, cols)
    starts = np.flatnonzero(example.input_ids == IMAGE_TOKEN_ID) + (P - 1) * np.arange(len(images))
    last = int(starts[-1]) + P
    for image, start in enumerate(starts.tolist()):
        # transformers takes its softmax in float32
        torch.testing.assert_close(got[image], full[0, :, last:, start : start + P], rtol=1e-5, atol=1e-9)


def test_images_of_other_samples_and_their_number_change_nothing(model: MobileVLM, examples: list[Example]) -> None:
    """None, one, two and three images in one batch against each sample alone."""
    with torch.no_grad():
        together = model(collate_sequences(examples))
        alone = torch.cat([model(collate_sequences([example])) for example in examples])
    torch.testing.assert_close(together, alone, rtol=1e-6, atol=1e-9)


def test_the_order_of_images_matters(model: MobileVLM, builder: MobileVLMPreparation, golden_images: Path) -> None:
    """A model that saw one image twice, or both at the first place, would pass without this."""
    sample = sample_of(0)
    files = read_images(golden_images, sample.images)
    with torch.no_grad():
        logits = [
            model(collate_sequences([builder.build(sample.turns, given)]))
            for given in (files, files[::-1], files[:1] * 2)
        ]
    assert all((logits[0] - other).abs().max() > 1e-3 for other in logits[1:])


def test_a_batch_numbers_its_images_by_sample(examples: list[Example]) -> None:
    batch: SequenceBatch = collate_sequences(examples)
    assert batch.image_samples_I.tolist() == [0, 0, 2, 3, 3, 3]
    assert batch.vision_mask_BL.sum(1).tolist() == [2 * P, 0, P, 3 * P]
    assert batch.tokens_of_image == (P,) * 6
    torch.testing.assert_close(batch.images[3], batch.images[1])  # the same cat


@pytest.mark.parametrize(
    ("images", "question", "message"),
    [
        (["coffee.png", "chelsea.png"], "<image> what?", "1 <image> in the conversation but 2 images"),
        (["coffee.png"], "<image><image><image> what?", "3 <image> in the conversation but 1 image;"),
        ([], "<image> what?", "1 <image> in the conversation but 0 images"),
    ],
)
def test_as_many_placeholders_as_images(
    builder: MobileVLMPreparation, golden_images: Path, images: list[str], question: str, message: str
) -> None:
    turns = [{"from": "human", "value": question}, {"from": "gpt", "value": "a"}]
    sample = sample_of_entry(0, {"image": images, "conversations": turns})
    with pytest.raises(SampleError, match=message):
        builder.build(sample.turns, read_images(golden_images, sample.images))


def test_a_broken_image_is_counted_out(builder: MobileVLMPreparation, golden_images: Path) -> None:
    good = (golden_images / "coffee.png").read_bytes()
    with pytest.raises(ImageError, match="image 2 of 2: broken image"):
        builder.build(sample_of(0).turns, (good, good[:1000]))


def test_pre_training_captions_one_image(golden: Path, golden_images: Path) -> None:
    builder = load_preparation(golden / "teacher", template="plain", vision_config=golden / "clip")
    files = read_images(golden_images, ("coffee.png", "rocket.jpg"))
    turns = sample_of_entry(
        0, {"conversations": [{"from": "human", "value": "<image><image>"}, {"from": "gpt", "value": "a cup"}]}
    ).turns
    with pytest.raises(SampleError, match="template 'plain' captions one image, found 2; use template 'v1'"):
        builder.build(turns, files)
