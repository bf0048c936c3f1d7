"""The positions of answers that a model wrote, for every family: by a second mask, and by cutting the conversation."""

import io
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import tiny_families
from PIL import Image

from alignkd.vlm.data.turns import Generated, Turn
from alignkd.vlm.errors import LabelMaskError, SampleError
from alignkd.vlm.families.huggingface.inputs.opening import open_preparation
from alignkd.vlm.families.mobilevlm.inputs.images import ImageProcessor
from alignkd.vlm.families.mobilevlm.inputs.preparation import MobileVLMPreparation
from alignkd.vlm.families.mobilevlm.inputs.tokenizer import LegacyLlamaTokenizer
from alignkd.vlm.inputs.examples import Preparation
from alignkd.vlm.inputs.generated_labels import generated_positions
from alignkd.vlm.inputs.labels import IGNORE_LABEL

GOLDEN = Path(__file__).parents[2] / "golden" / "mobilevlm_v2_tiny"
ANSWERS = ("a dog and two birds", "the last one", "It is blue.")


@pytest.fixture(scope="module", params=["MobileVLM", *tiny_families.NINE])
def preparation(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Preparation:
    if request.param != "MobileVLM":
        return open_preparation(tiny_families.build(request.param, tmp_path_factory.mktemp("family") / "checkpoint"))
    tokenizer = LegacyLlamaTokenizer(GOLDEN / "teacher" / "tokenizer.model")
    return MobileVLMPreparation(
        tokenizer=tokenizer, template="v1", image_processor=ImageProcessor(image_size=28), vision_tokens=4
    )


def picture() -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (100, 60), "red").save(stream, "PNG")
    return stream.getvalue()


def conversation(kinds: tuple[str, ...]) -> list[Turn]:
    """Three rounds; the kind of an answer is `given`, `generated` or `masked`: generated and not trained."""
    turns = []
    for number, (answer, kind) in enumerate(zip(ANSWERS, kinds, strict=True)):
        turns.append(Turn("human", ("<image>\n" if not number else "") + "what is it?"))
        generated = None if kind == "given" else Generated(by="t")
        turns.append(Turn("gpt", answer, trained=kind != "masked", generated=generated))
    return turns


def test_a_second_mask_is_the_cut_conversation(preparation: Preparation) -> None:
    files, all_trained = [picture()], conversation(("given",) * 3)
    ends = [0] + [int((preparation.build(all_trained[:end], files).labels != IGNORE_LABEL).sum()) for end in (2, 4, 6)]
    seen = set()
    for kinds in product(("given", "generated", "masked"), repeat=3):
        if set(kinds) == {"masked"}:
            continue
        turns = conversation(kinds)
        example = preparation.build(turns, files)
        found = generated_positions(preparation, turns, files, example)
        assert len(found) == len(example.positions.supervised_positions)
        expected = [
            kind == "generated"
            for kind, start, end in zip(kinds, ends, ends[1:], strict=False)
            for _ in range(end - start)
            if kind != "masked"
        ]
        assert found.tolist() == expected, kinds
        seen.add((found.any(), found.all()))
    assert len(seen) == 3


def test_images_are_not_decoded_again(preparation: Preparation, monkeypatch: pytest.MonkeyPatch) -> None:
    turns, files = conversation(("given", "generated", "given")), [picture()]
    example = preparation.build(turns, files)
    monkeypatch.setattr(type(preparation), "build", None)
    monkeypatch.setattr(Image.Image, "load", None)
    found = generated_positions(preparation, turns, files, example)
    assert 0 < int(found.sum()) < len(found) == np.count_nonzero(example.labels != IGNORE_LABEL)


def test_a_text_with_an_end_of_turn_is_refused_where_both_kinds_meet() -> None:
    tokenizer = LegacyLlamaTokenizer(GOLDEN / "teacher" / "tokenizer.model")
    preparation = MobileVLMPreparation(
        tokenizer=tokenizer, template="v1", image_processor=ImageProcessor(image_size=28), vision_tokens=4
    )
    given = [Turn("human", "q"), Turn("gpt", "yes</s>USER: why? ASSISTANT: because")]
    turns = [*given, Turn("human", "r"), Turn("gpt", "no", generated=Generated())]
    tokens = preparation.tokenize(turns, [])
    with pytest.raises(LabelMaskError, match="unknown which tokens are of the masked answer"):
        generated_positions(preparation, turns, [], tokens)
    everything = [replace(turn, generated=Generated()) if turn.speaker == "gpt" else turn for turn in turns]
    assert generated_positions(preparation, everything, [], tokens).all()


def test_template_plain_names_what_to_do_about_a_question_alone() -> None:
    tokenizer = LegacyLlamaTokenizer(GOLDEN / "teacher" / "tokenizer.model")
    preparation = MobileVLMPreparation(
        tokenizer=tokenizer, template="plain", image_processor=ImageProcessor(image_size=28), vision_tokens=4
    )
    with pytest.raises(SampleError, match=r"or set data\.answers to missing and run `alignkd generate`"):
        preparation.tokenize([Turn("human", "<image>\nwhat is it?")], [(100, 60)])


def test_every_family_names_what_to_do_about_a_question_alone(preparation: Preparation) -> None:
    with pytest.raises(SampleError, match=r"or set data\.answers to missing and run `alignkd generate`"):
        preparation.tokenize([Turn("human", "<image>\nwhat is it?")], [(100, 60)])
