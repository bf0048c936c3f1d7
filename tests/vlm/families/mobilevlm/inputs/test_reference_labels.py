"""Ids and labels of conversations equal a twin of the original's data code, or the sample is refused.

The twin states the original's rules (train.py, conversation.py, utils.py of MobileVLM) for one sample; what it does by
crashing or by masking every label is `None`.
"""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st

from alignkd.vlm.data.turns import V1_SYSTEM, Turn
from alignkd.vlm.errors import LabelMaskError, SampleError
from alignkd.vlm.families.mobilevlm.inputs.templates import (
    TemplateName,
    check_turns,
    tokenize_conversation,
)
from alignkd.vlm.families.mobilevlm.inputs.tokenizer import LegacyLlamaTokenizer
from alignkd.vlm.inputs.labels import IGNORE_LABEL, IMAGE_TOKEN_ID
from alignkd.vlm.inputs.position_map import position_map

TOKENIZER = LegacyLlamaTokenizer(
    Path(__file__).parents[4] / "golden" / "mobilevlm_v2_tiny" / "teacher" / "tokenizer.model"
)
PADDING = 0  # the original pads with <unk>
Tokens = tuple[list[int], list[int]]


def ids_of(text: str, *, has_image: bool) -> list[int]:
    """One BOS; with an image, what stands between two `<image>` is tokenised on its own."""
    parts = [TOKENIZER.encode(part) for part in (text.split("<image>") if has_image else [text])]
    ids = parts[0]
    for part in parts[1:]:
        ids = [*ids, IMAGE_TOKEN_ID, *part[1:]]
    return ids


def placeholder_first(value: str) -> str:
    """With an image, every turn that mentions it has it once, first, on its own line."""
    return "\n".join(["<image>", value.replace("<image>", "").strip()]).strip() if "<image>" in value else value


def twin_v1(turns: list[Turn], *, has_image: bool) -> Tokens | None:
    roles = ["USER" if turn.speaker == "human" else "ASSISTANT" for turn in turns]
    values = [placeholder_first(turn.value) if has_image else turn.value for turn in turns]
    if roles[0] == "ASSISTANT":
        roles, values = roles[1:], values[1:]
    if roles != ["USER", "ASSISTANT"] * (len(roles) // 2) + ["USER"] * (len(roles) % 2):
        return None  # assertion
    prompt = f"{V1_SYSTEM} "
    for role, value in zip(roles, values, strict=True):
        end = " " if role == "USER" else "</s>"
        prompt += f"{role}: {value}{end}" if value else f"{role}:"
    ids = np.array(ids_of(prompt, has_image=has_image))
    supervised = np.ones(len(ids), bool)
    supervised[0] = False
    walked = 1
    for exchange in prompt.split("</s>"):
        halves = exchange.split(" ASSISTANT: ")
        if exchange == "" or len(halves) != 2:
            break
        asked = len(ids_of(halves[0] + " ASSISTANT: ", has_image=has_image))
        supervised[walked : walked + asked - 2] = False
        walked += len(ids_of(exchange, has_image=has_image))
    supervised[walked:] = False
    if walked != (ids != PADDING).sum():
        return None  # "tokenization mismatch": every label is masked
    return ids.tolist(), np.where(supervised, ids, IGNORE_LABEL).tolist()


def twin_plain(turns: list[Turn]) -> Tokens | None:
    values = [placeholder_first(turn.value) for turn in turns]
    if len(values) != 2 or "<image>" not in values[0]:
        return None  # assertion
    ids = ids_of(f"<image>{values[1]}\n", has_image=True)
    return ids, [IGNORE_LABEL, IGNORE_LABEL, *ids[2:]]


def ours(turns: list[Turn], *, template: TemplateName, has_image: bool) -> Tokens | SampleError:
    try:
        tokens = tokenize_conversation(turns, template=template, num_images=has_image, tokenizer=TOKENIZER)
    except SampleError as error:
        return error
    return tokens.input_ids, tokens.labels


words = st.text(st.characters(exclude_categories=["Cs"]), max_size=8) | st.sampled_from(
    [
        "a cup",
        " ",
        "\n",
        "  two",
        "caf\u00e9 \u4e2d\u6587",
        "\U0001f600",
        "USER: ",
        "ASSISTANT:",
        "<s>",
        "3.14",
        "x" * 40,
    ]
)
marks = st.sampled_from([" ASSISTANT: ", "</s>", "<unk>", "<image>"])
plain_values = st.tuples(st.sampled_from(["a", "Is it?", " b", "\n"]), words, words).map("".join)
values = plain_values | st.lists(words | marks, max_size=4).map("".join)


@st.composite
def conversations(draw: st.DrawFn) -> tuple[list[Turn], bool]:
    """Turns of alternating speakers, mostly complete and mostly with `<image>` where it belongs."""
    odd, from_gpt = (draw(st.sampled_from([False] * 4 + [True])) for _ in range(2))
    content = draw(st.sampled_from([plain_values, plain_values, values]))
    texts = [draw(content) for _ in range(2 * draw(st.integers(1, 3)) + odd + from_gpt)]
    has_image = draw(st.booleans())
    if has_image and not any("<image>" in text for text in texts):
        turn = draw(st.sampled_from([0, 0, 0, 1, len(texts) - 1])) if not from_gpt else 1
        place = draw(st.integers(0, len(texts[turn])))
        texts[turn] = texts[turn][:place] + "<image>" + texts[turn][place:]
    speakers = ("gpt", "human") if from_gpt else ("human", "gpt")
    return [Turn(speakers[number % 2], text) for number, text in enumerate(texts)], has_image


@settings(max_examples=300)
@given(conversations())
def test_v1_equals_the_twin_or_is_refused(case: tuple[list[Turn], bool]) -> None:
    turns, has_image = case
    expected, found = twin_v1(turns, has_image=has_image), ours(turns, template="v1", has_image=has_image)
    if isinstance(found, SampleError):
        event(f"refused: {type(found).__name__}")
        if type(found) is LabelMaskError:
            assert expected is None or PADDING in expected[0]
        return
    event("the same")
    assert found == expected
    where = position_map(*found, vision_tokens=9)
    assert len(where.vision_positions) == 9 * has_image and len(where.supervised_positions)
    assert IMAGE_TOKEN_ID not in where.next_labels  # an image in an answer is no label


@given(conversations(), st.booleans())
def test_plain_equals_the_twin_or_is_refused(case: tuple[list[Turn], bool], cut: bool) -> None:
    turns = case[0][:2] if cut else case[0]
    found = ours(turns, template="plain", has_image=True)
    if isinstance(found, SampleError):
        event(f"refused: {type(found).__name__}")
        return
    event("the same")
    assert found == twin_plain(turns)


@given(conversations())
def test_what_the_twin_can_train_on_is_refused_for_a_stated_reason_only(case: tuple[list[Turn], bool]) -> None:
    turns, has_image = case
    expected, found = twin_v1(turns, has_image=has_image), ours(turns, template="v1", has_image=has_image)
    if expected is None or not isinstance(found, SampleError):
        return
    placeholders = sum(turn.value.count("<image>") for turn in turns)
    in_dropped_turn = turns[0].speaker == "gpt" and "<image>" in turns[0].value
    assert placeholders != has_image or in_dropped_turn or PADDING in expected[0]


def speak(*texts: str) -> list[Turn]:
    return [Turn(("human", "gpt")[number % 2], text) for number, text in enumerate(texts)]


MASKED = [
    ("an open question at the end", speak("one?", "a", "two?")),
    ("an empty answer", speak("one?", "")),
    ("an empty question", speak("", "a")),
    ("the mark of an answer in a question", speak("say ASSISTANT: now", "a")),
    ("the mark of an answer in an answer", speak("one?", "b ASSISTANT: c")),
    ("the end of a turn in a question", speak("what is </s>?", "a")),
    ("the unknown token", speak("what is <unk>?", "a")),
]


@pytest.mark.parametrize(("turns"), [turns for _, turns in MASKED], ids=[name for name, _ in MASKED])
def test_what_the_original_masks_wholly_is_a_label_mask_error(turns: list[Turn]) -> None:
    assert twin_v1(turns, has_image=False) is None
    with pytest.raises(LabelMaskError, match="original"):
        tokenize_conversation(turns, template="v1", num_images=False, tokenizer=TOKENIZER)
    check_turns(turns, num_images=False)  # nothing but the walk finds them


KEPT = [
    ("white space at the ends of values", speak("  one? \n", " a  ")),
    ("role names", speak("Is USER: or ASSISTANT:first?", "USER: is.")),
    ("the mark of an answer at the end of a question", speak("one? ASSISTANT:", "a")),
    ("the first token", speak("<s> one?", "<s>")),
    ("blanks only", speak(" ", " ")),
]


@pytest.mark.parametrize("has_image", [True, False])
@pytest.mark.parametrize(("turns"), [turns for _, turns in KEPT], ids=[name for name, _ in KEPT])
def test_what_looks_odd_and_is_trained_on(turns: list[Turn], has_image: bool) -> None:
    if has_image:
        turns = [Turn("human", turns[0].value + "<image>"), turns[1]]
    found = ours(turns, template="v1", has_image=has_image)
    assert found == twin_v1(turns, has_image=has_image) and not isinstance(found, SampleError)


def test_an_image_in_an_answer_moves_to_its_head_and_is_no_label() -> None:
    turns = speak("Draw a cup.", "Here it is: <image>")
    found = ours(turns, template="v1", has_image=True)
    assert not isinstance(found, SampleError) and found == twin_v1(turns, has_image=True)
    assert found[1].count(IMAGE_TOKEN_ID) == 1
    where = position_map(*found, vision_tokens=4)
    assert TOKENIZER.decode(where.next_labels.tolist()).strip() == "Here it is:"


def test_literal_end_marks_that_keep_the_count_train_as_in_the_original() -> None:
    """An answer with `</s>` in it stops the walk there, unless what follows is a whole exchange."""
    turns = speak("one?", "a</s>USER: two? ASSISTANT: b")
    found = ours(turns, template="v1", has_image=False)
    assert (
        found
        == twin_v1(turns, has_image=False)
        == ours(speak("one?", "a", "two?", "b"), template="v1", has_image=False)
    )
