"""The check of a teacher's eyes gives a sample the image of another: tokens and positions follow that image."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from alignkd.teacher_dump.preparation import PreparationThreads, Prepared
from alignkd.vlm.data.sample import Sample
from alignkd.vlm.data.turns import Turn
from alignkd.vlm.families.open import open_checkpoint

TURNS = (Turn("human", "<image>\nWhat is it?"), Turn("gpt", "a cup on the left"))
NEAR, WIDE = (
    Sample(index=n, id=str(n), images=(f"{name}.png",), turns=TURNS) for n, name in enumerate(("near", "wide"))
)


def in_folder(folder: Path) -> list[Sample]:
    return [replace(sample, folder=folder) for sample in (NEAR, WIDE)]


def content(prepared: Prepared) -> dict[str, np.ndarray]:
    example, positions = prepared.example, prepared.example.positions
    arrays = {name: values for image in prepared.images for name, values in image.items()}
    return {
        "input_ids": example.input_ids,
        "labels": example.labels,
        "vision_positions": positions.vision_positions,
        "supervised_positions": positions.supervised_positions,
        **example.types,
        **arrays,
    }


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl", "smolvlm", "mistral3"])
def test_a_sample_with_another_image_is_that_sample(
    family: str, family_teacher: Callable[[str], Path], family_data: Path
) -> None:
    preparation = open_checkpoint(family_teacher(family), weights=False).preparation()
    with PreparationThreads(preparation, family_data / "images", 2) as threads:
        near, wide = threads.prepare(in_folder(family_data / "images"))
        exchanged, back = threads.with_images_of([near, wide], [wide, near])
    assert exchanged is not None and back is not None
    for found, expected in ((exchanged, wide), (back, near)):
        assert found.image_hashes == expected.image_hashes and found.image_files == expected.image_files
        expected_content = content(expected)
        assert content(found).keys() == expected_content.keys()
        for name, values in content(found).items():
            np.testing.assert_array_equal(values, expected_content[name], err_msg=name)
    assert exchanged.sample == near.sample


def test_an_image_that_makes_a_sample_too_long_is_left_out(
    family_teacher: Callable[[str], Path], family_data: Path
) -> None:
    opened = open_checkpoint(family_teacher("qwen2_5_vl"), weights=False)
    with PreparationThreads(opened.preparation(), family_data / "images", 1) as threads:
        near, wide = threads.prepare(in_folder(family_data / "images"))
    short, long = sorted((near, wide), key=lambda sample: sample.length)
    assert short.length < long.length
    with PreparationThreads(opened.preparation(max_tokens=short.length), family_data / "images", 1) as threads:
        assert threads.with_images_of([short], [long]) == [None]
        [found] = threads.with_images_of([short], [short])
        assert found is not None and found.length == short.length
