"""Ids, labels and positions of every family against an encoder that shares no code with this project.

The reference (`tests/support/reference_vlm.py`) calls the processor with all images of a sample at once and finds the
answers in the bytes of the tokens.
"""

import io
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import reference_vlm
import tiny_families
from chosen_families import chosen, nine_first
from hard_conversations import CONVERSATIONS, SIZES, picture
from PIL import Image
from transformers import AutoProcessor

from alignkd.vlm.data.turns import Turn
from alignkd.vlm.families.huggingface.inputs.preparation import HuggingFacePreparation
from alignkd.vlm.inputs.labels import IGNORE_LABEL

Opened = Callable[[str], HuggingFacePreparation]
FAMILIES = [family for family in tiny_families.FAMILIES if family != "paligemma"]
# for every family, the others for the nine: tiles and white space, and answers with the words of templates
HARDEST = ("three images in one turn, white space around answers", "answers with the names of the speakers")
CASES = chosen(
    [(family, name) for family in FAMILIES for name in CONVERSATIONS],
    lambda case: case[0] in tiny_families.NINE or case[1] in HARDEST,
)


@cache
def plain_processor(folder: Path) -> tuple[Any, set[int]]:
    processor = AutoProcessor.from_pretrained(folder)
    return processor, reference_vlm._stops(processor, folder)


def by_the_reference(preparation: HuggingFacePreparation, turns: list[Turn], files: list[bytes]) -> SimpleNamespace:
    image_id = preparation.loaded.image_token_id
    processor, stops = plain_processor(preparation.loaded.folder)
    said = [{"from": turn.speaker, "value": turn.value} for turn in turns]
    images = [Image.open(io.BytesIO(file)).convert("RGB") for file in files]
    inputs, labels, optional = reference_vlm.encode(processor, image_id, (said, images), stops)
    ids = inputs["input_ids"][0].numpy()
    vision = np.flatnonzero(ids == image_id)
    return SimpleNamespace(
        inputs=inputs,
        ids=ids,
        labels=set(labels.tolist()),
        optional=set(optional.tolist()),
        vision=vision,
        queries=[n for n in range(len(ids)) if len(vision) and n > vision[-1]],
    )


@pytest.mark.parametrize(("family", "name"), CASES)
def test_ids_labels_and_positions_are_those_of_the_reference(family: str, name: str, opened: Opened) -> None:
    turns, numbers = CONVERSATIONS[name]
    preparation, files = opened(family), [picture(number) for number in numbers]
    wanted, found = by_the_reference(preparation, turns, files), preparation.build(turns, files)
    assert found.input_ids.tolist() == wanted.ids.tolist()
    labels = set(np.flatnonzero(found.labels != IGNORE_LABEL).tolist())
    assert labels - wanted.optional == wanted.labels - wanted.optional, preparation.marked(found)
    assert (found.labels[sorted(labels)] == found.input_ids[sorted(labels)]).all()
    assert found.positions.vision_positions.tolist() == wanted.vision.tolist()
    assert found.positions.tqv_query_positions.tolist() == wanted.queries
    for types, values in found.types.items():
        assert values.dtype == np.int32 and values.tolist() == wanted.inputs[types][0].tolist()
    assert found.input_ids.dtype == found.labels.dtype == np.int32
    by_size = preparation.tokenize(turns, [SIZES[number] for number in numbers])
    assert np.array_equal(by_size.input_ids, found.input_ids) and np.array_equal(by_size.labels, found.labels)
    assert by_size.positions.tokens_of_image == found.positions.tokens_of_image


@pytest.mark.parametrize("family", nine_first(FAMILIES))
def test_the_arrays_of_an_only_image_are_those_of_the_processor(family: str, opened: Opened) -> None:
    turns, _ = CONVERSATIONS["one image, two turns"]
    for number in range(len(SIZES)):
        file = picture(number)
        wanted = by_the_reference(opened(family), turns, [file]).inputs
        (arrays,) = opened(family).build(turns, [file]).images
        of_text = {"input_ids", "attention_mask", "token_type_ids", "mm_token_type_ids"}
        assert set(arrays) == set(wanted) - of_text
        for key, values in arrays.items():
            assert np.array_equal(values, wanted[key].numpy()), key


@pytest.mark.parametrize("family", nine_first(FAMILIES))
def test_the_arrays_of_images_beside_others_are_those_of_the_processor(family: str, opened: Opened) -> None:
    turns, numbers = CONVERSATIONS["three images in one turn, white space around answers"]
    files = [picture(number) for number in numbers]
    wanted = by_the_reference(opened(family), turns, files).inputs
    images = opened(family).build(turns, files).images
    for name in images[0]:
        if name != "batch_num_images":
            assert is_made_of(wanted[name].numpy(), [image[name] for image in images]), name


def is_made_of(together: np.ndarray, parts: Sequence[np.ndarray]) -> bool:
    """Whether the arrays stand one after the other, by image or by tile of a sample, or at the corner of padding."""
    for axis in (0, 1):
        shapes = {(*part.shape[:axis], *part.shape[axis + 1 :]) for part in parts}
        if shapes == {(*together.shape[:axis], *together.shape[axis + 1 :])}:
            return np.allclose(np.concatenate(parts, axis), together, atol=1e-5)
    corners = [together[(number, *map(slice, part.shape[1:]))] for number, part in enumerate(parts)]
    return len(parts) == len(together) and all(
        np.allclose(corner, part[0], atol=1e-5) for corner, part in zip(corners, parts, strict=True)
    )
