"""Prompts and pixels of every golden question are those that the original's generators gave to the model."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_families
from PIL import Image

from alignkd.evaluation.benchmark import BENCHMARKS
from alignkd.evaluation.question import Question
from alignkd.pipeline.evaluation.prompts import preparation_for, sample_of
from alignkd.vlm.data.images import image_files
from alignkd.vlm.families.mobilevlm.inputs.images import ImageProcessor
from alignkd.vlm.families.mobilevlm.inputs.preparation import MobileVLMPreparation
from alignkd.vlm.families.mobilevlm.inputs.templates import tokenize_with_image
from alignkd.vlm.families.open import open_checkpoint
from alignkd.vlm.inputs.examples import Example
from alignkd.vlm.inputs.image_file import decode_image

ExpectedOf = Callable[[str], dict[str, Any]]
each_benchmark = pytest.mark.parametrize("name", list(BENCHMARKS))


@pytest.fixture(scope="module")
def folder(golden: Path) -> Path:
    return golden / "teacher"


def prepared(questions: list[Question], checkpoint: Path, golden: Path) -> MobileVLMPreparation:
    found = preparation_for(open_checkpoint(checkpoint, vision_config=golden / "clip"), questions)
    assert isinstance(found, MobileVLMPreparation)
    return found


def built(preparation: MobileVLMPreparation, question: Question, folder: Path) -> tuple[Example, tuple[bytes, ...]]:
    sample = sample_of(question, 0, folder)
    files = image_files(sample)
    return preparation.build_question(sample.turns, files), files


@each_benchmark
def test_prompts_are_the_originals(
    name: str, expected_of: ExpectedOf, eval_golden: Path, folder: Path, golden: Path
) -> None:
    expected = expected_of(name)
    questions = list(BENCHMARKS[name].questions(eval_golden / name / "data"))
    preparation = prepared(questions, folder, golden)
    assert len(questions) == len(expected["items"])
    for question, item in zip(questions, expected["items"], strict=True):
        example, _ = built(preparation, question, eval_golden)
        ids = tokenize_with_image(item["model_prompt"], preparation.tokenizer)
        assert example.input_ids.tolist() == ids, item
        assert question.max_new_tokens == expected["generate"]["max_new_tokens"]


def given_to_clip(file: bytes, item: dict[str, Any], processor: ImageProcessor) -> Image.Image:
    """The picture at the size that the golden file states: as it is, or in a square of the mean colour."""
    image, size = decode_image(file), tuple(item["image_given_to_clip"]["size"])
    if image.size == size:
        return image
    square = Image.new("RGB", size, tuple(int(channel * 255) for channel in processor.mean))
    square.paste(image, ((size[0] - image.width) // 2, (size[1] - image.height) // 2))
    return square


@each_benchmark
def test_pixels_are_those_of_the_picture_that_the_original_gave_to_clip(
    name: str, expected_of: ExpectedOf, eval_golden: Path, folder: Path, golden: Path
) -> None:
    questions = list(BENCHMARKS[name].questions(eval_golden / name / "data"))
    preparation = prepared(questions, folder, golden)
    shapes = set()
    for question, item in zip(questions, expected_of(name)["items"], strict=True):
        example, files = built(preparation, question, eval_golden)
        assert len(files) == len(example.images) == (item.get("image_given_to_clip") is not None)
        if files:
            unpadded = replace(preparation.image_processor, pad_to_square=False)
            given = given_to_clip(files[0], item, unpadded)
            shapes.add(given.width == given.height)
            assert np.array_equal(example.images[0]["pixel_values"], unpadded.process(given)), item
    # only where a picture is not square does the border show
    assert shapes == ({True, False} if name == "sqa" else {True})


def test_blanks_of_a_turn_are_kept(folder: Path, golden: Path, golden_images: Path) -> None:
    turn = "  Is it red? \n"
    asked = Question(id=1, turn=turn, prompt=turn, image=golden_images / "coffee.png")
    preparation = prepared([asked], folder, golden)
    example, _ = built(preparation, asked, golden_images)
    text = f"A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, detailed, and polite answers to the user's questions. USER: <image>\n{turn} ASSISTANT:"  # noqa: E501
    assert example.input_ids.tolist() == tokenize_with_image(text, preparation.tokenizer)
    stripped, _ = built(replace(preparation, verbatim=False), asked, golden_images)
    assert stripped.input_ids.tolist() != example.input_ids.tolist()


def test_grey_and_palette_pictures_get_the_border_of_rgb_ones(folder: Path, golden: Path, tmp_path: Path) -> None:
    """The original of mmbench pads before it converts, which fails for grey and recolours the border of a palette."""
    grey = Image.linear_gradient("L").crop((0, 0, 200, 90))
    pixels = []
    for number, image in enumerate((grey, grey.convert("RGB"), grey.convert("RGB").convert("P"))):
        image.save(tmp_path / f"{number}.png")
        asked = Question(id=1, turn="?", prompt="?", image=(tmp_path / f"{number}.png").read_bytes())
        example, _ = built(prepared([asked], folder, golden), asked, tmp_path)
        pixels.append(example.images[0]["pixel_values"])
    assert np.array_equal(pixels[0], pixels[1])
    assert np.array_equal(pixels[2][:, 0], pixels[1][:, 0])


def test_other_families_take_their_own_template(tmp_path: Path, golden_images: Path) -> None:
    checkpoint = open_checkpoint(tiny_families.build("qwen3_vl", tmp_path / "model"))
    asked = Question(id=1, turn="Is it red?", prompt="Is it red?", image=golden_images / "coffee.png")
    preparation, sample = preparation_for(checkpoint, [asked]), sample_of(asked, 7, golden_images)
    example = preparation.build_question(sample.turns, image_files(sample))
    plain = checkpoint.preparation().build_question(sample.turns, image_files(sample))
    assert example.input_ids.tolist() == plain.input_ids.tolist() and len(example.images) == 1
    assert (sample.index, sample.images, sample.folder) == (7, ("coffee.png",), golden_images)
