"""Images alone: tokens by size, threads, copies in other processes, the cache, and the variant for Pillow."""

import pickle
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import tiny_families
from chosen_families import nine_first
from hard_conversations import CONVERSATIONS, picture, picture_of

from alignkd.vlm.data.turns import Turn
from alignkd.vlm.families.huggingface.inputs.images import ImageEncoder
from alignkd.vlm.families.huggingface.inputs.opening import open_preparation
from alignkd.vlm.families.huggingface.inputs.preparation import HuggingFacePreparation
from alignkd.vlm.inputs.examples import Example

FolderOf = Callable[[str], Path]
Opened = Callable[[str], HuggingFacePreparation]
FAMILIES = [family for family in tiny_families.FAMILIES if family != "paligemma"]
ODD_SIZES = [
    (30, 25),
    (3, 40),
    (40, 3),
    (64, 64),
    (65, 63),
    (199, 150),
    (30, 29),
    (1, 1),
    (28, 28),
    (28, 56),
    (777, 41),
    (57, 640),
]
ASKED = [Turn("human", "<image>\nwhat?"), Turn("gpt", "a cat")]


def same(one: Example, other: Example) -> bool:
    arrays = [
        np.array_equal(values, image[name])
        for image, values_of in zip(other.images, one.images, strict=True)
        for name, values in values_of.items()
    ]
    return np.array_equal(one.input_ids, other.input_ids) and np.array_equal(one.labels, other.labels) and all(arrays)


@pytest.mark.parametrize("family", nine_first(FAMILIES))
def test_tokens_of_any_size_are_those_of_an_image_of_that_size(family: str, opened: Opened) -> None:
    preparation = opened(family)
    assert preparation.images.on_meta is (family != "llava")  # LLaVA-1.5 copies pixels to count tokens
    for size in ODD_SIZES:
        for among in (1, 2):
            fresh = ImageEncoder(
                processor=preparation.images.processor,
                prompts=preparation.images.prompts,
                alone_differs=preparation.images.alone_differs,
                on_meta=preparation.images.on_meta,
            )
            turns = [Turn("human", "<image>" * among), Turn("gpt", "yes")]
            try:
                by_pixels = preparation.build(turns, [picture_of(size)] * among)
            except Exception as refused:
                with pytest.raises(type(refused)):
                    fresh.replacement(size, among)
                continue
            counts = by_pixels.positions.tokens_of_image
            count = preparation.loaded.count_vision_tokens(fresh.replacement(size, among))
            assert counts == (count,) * among and sum(counts) == len(by_pixels.positions.vision_positions)


def test_only_llava_onevision_depends_on_the_number_of_images(opened: Opened) -> None:
    assert [family for family in FAMILIES if opened(family).images.alone_differs] == ["llava_onevision"]
    preparation = opened("llava_onevision")
    alone, beside = (
        preparation.tokenize([Turn("human", "<image>" * count), Turn("gpt", "a")], [(200, 150)] * count)
        for count in (1, 2)
    )
    assert beside.positions.tokens_of_image[0] < alone.positions.tokens_of_image[0]
    file = picture_of((200, 150))
    first = preparation.build([Turn("human", "<image>" * 2), Turn("gpt", "a")], [file] * 2).images[0]
    assert first["batch_num_images"].tolist() == [2] and len(first["pixel_values"]) == len(first["image_sizes"]) == 1


@pytest.mark.parametrize("family", ["qwen2_5_vl", "smolvlm"])
def test_threads_share_a_preparation(family: str, folder_of: FolderOf) -> None:
    preparation = open_preparation(folder_of(family))
    samples = list(CONVERSATIONS.values()) * 2

    def build(sample: tuple[list[Turn], list[int]]) -> Example:
        return preparation.build(sample[0], [picture(number) for number in sample[1]])

    alone = [build(sample) for sample in samples]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(build, samples))
    assert all(map(same, alone, together))


@pytest.mark.parametrize("family", nine_first(FAMILIES))
def test_a_preparation_can_be_pickled(family: str, opened: Opened) -> None:
    preparation = opened(family)
    copy = pickle.loads(pickle.dumps(preparation))
    assert copy.fingerprint == preparation.fingerprint and copy.warnings() == preparation.warnings()
    assert same(copy.build(ASKED, [picture(0)]), preparation.build(ASKED, [picture(0)]))
    assert copy.probe() == preparation.probe()


def test_a_cached_image_is_processed_once(opened: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    preparation = opened("qwen3_vl").caching_images()
    calls = []
    true_encode = ImageEncoder.encode
    monkeypatch.setattr(
        ImageEncoder, "encode", lambda self, image, among: calls.append(among) or true_encode(self, image, among)
    )
    wanted = preparation.build(ASKED, [picture(3)])
    found = [preparation.build(ASKED, [picture(3)]) for _ in range(3)]
    assert calls == [1] and all(same(wanted, example) for example in found)
    preparation.build([Turn("human", "<image><image>"), Turn("gpt", "a")], [picture(3)] * 2)
    assert calls == [1]
    preparation.build([Turn("human", "<image><image>"), Turn("gpt", "a")], [picture(2)] * 2)
    assert calls == [1, 2]


@pytest.mark.parametrize("family", ["qwen3_vl", "llava_onevision", "internvl", "mistral3"])
def test_the_variant_for_pillow_has_the_same_tokens_and_other_fingerprint(
    family: str, folder_of: FolderOf, opened: Opened
) -> None:
    pil, usual = open_preparation(folder_of(family), processor="pil"), opened(family)
    assert type(pil.loaded.processor.image_processor).__name__.endswith("Pil")
    differing = {name for name in usual.fingerprint if usual.fingerprint[name] != pil.fingerprint[name]}
    assert differing == {"image_processor"}
    for conversation, numbers in CONVERSATIONS.values():
        one, other = (each.build(conversation, [picture(number) for number in numbers]) for each in (pil, usual))
        assert np.array_equal(one.input_ids, other.input_ids)
        for image, its_twin in zip(one.images, other.images, strict=True):
            assert {name: values.shape for name, values in image.items()} == {
                name: values.shape for name, values in its_twin.items()
            }
