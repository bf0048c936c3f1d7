"""Supervised is what the assistant writes and the token that ends its turn, whatever the texts are."""

from collections.abc import Callable

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from alignkd.vlm.data.turns import Turn
from alignkd.vlm.errors import SampleError
from alignkd.vlm.families.huggingface.inputs.preparation import HuggingFacePreparation
from alignkd.vlm.families.huggingface.inputs.text.messages import messages_of
from alignkd.vlm.inputs.labels import IGNORE_LABEL

Opened = Callable[[str], HuggingFacePreparation]
# No stop token; the answer runs on into a line break; shared white space; trimmed answers; NFC; a thinking block.
FAMILIES = ("llava", "qwen2_5_vl", "llava_next", "llava_onevision", "gemma3", "mistral3", "smolvlm", "qwen3_5")
STOPS = {
    "llava": "",
    "llava_next": "</s>",
    "mistral3": "</s>",
    "gemma3": "<end_of_turn>",
    "smolvlm": "<end_of_utterance>",
}

words = st.sampled_from(
    ["cat", "the cat", "USER:", "assistant", "model\n", "今天", "🙂", "e\u0301", "\n\n", "  ", "\t", "é.", "1 2"]
)
texts = st.one_of(
    st.lists(words, min_size=1, max_size=6).map(" ".join),
    st.lists(words, min_size=1, max_size=6).map("".join),
    st.text(st.characters(codec="utf-8"), min_size=1, max_size=30),
).filter(lambda text: text.strip() and "<" not in text and "[" not in text)
rounds = st.lists(st.tuples(texts, texts), min_size=1, max_size=3)


def squeezed(text: str) -> str:
    return "".join(text.split())


@pytest.mark.parametrize("family", FAMILIES)
@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rounds=rounds)
def test_supervised_text_is_the_answers_and_their_stop_tokens(
    family: str, rounds: list[tuple[str, str]], opened: Opened
) -> None:
    preparation = opened(family)
    turns = [Turn(who, text) for pair in rounds for who, text in zip(("human", "gpt"), pair, strict=True)]
    try:
        tokens = preparation.tokenize(turns, [])
    except SampleError as error:
        # an answer whose last token also holds the text after it
        assert family == "llava" and "run into the text after the answer" in str(error)
        return
    normalizer = preparation.loaded.tokenizer.backend_tokenizer.normalizer
    normalized = normalizer.normalize_str if normalizer is not None else str
    stop = STOPS.get(family, "<|im_end|>")
    supervised = [text for text, is_supervised in preparation.marked(tokens) if is_supervised]
    assert squeezed("".join(supervised)) == squeezed(normalized("".join(answer + stop for _, answer in rounds)))
    assert len(supervised) == len(rounds)
    # the rest is what the template writes around them
    rendered = preparation.template.render(messages_of(turns))
    whole = "".join(text for text, _ in preparation.marked(tokens))
    assert squeezed(whole).endswith(squeezed(normalized(rendered)))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_question_is_the_prompt_of_the_same_conversation_with_its_answer(family: str, opened: Opened) -> None:
    preparation = opened(family)
    asked = [Turn("human", "how many?"), Turn("gpt", "two"), Turn("human", "and birds?")]
    training = preparation.tokenize([*asked, Turn("gpt", "none")], [])
    are_prefixes = True
    for turns in (asked[:1], asked):
        question = preparation.build_question(turns, [])
        assert (question.labels == IGNORE_LABEL).all() and not len(question.positions.supervised_positions)
        ids = question.input_ids.tolist()
        are_prefixes &= training.input_ids[: len(ids)].tolist() == ids
    remarks = preparation.warnings()
    assert are_prefixes is not any(
        "the prompt for an answer is not how the same turn begins" in line for line in remarks
    )
    assert are_prefixes is (family not in ("llava_onevision", "qwen3_5"))


def test_white_space_that_the_template_keeps_is_supervised(opened: Opened) -> None:
    turns = [Turn("human", "q"), Turn("gpt", "\n\n  two\n\nlines \n")]
    pieces = opened("qwen2_5_vl").marked(opened("qwen2_5_vl").tokenize(turns, []))
    assert pieces[-2:] == [("\n\n  two\n\nlines \n<|im_end|>", True), ("\n", False)]
    assert pieces[0][0].endswith("<|im_start|>assistant\n")
    pieces = opened("gemma3").marked(opened("gemma3").tokenize(turns, []))
    assert pieces[-2:] == [("two\n\nlines<end_of_turn>", True), ("\n", False)]


def test_vision_tokens_are_shown_as_their_number(opened: Opened) -> None:
    preparation = opened("qwen3_vl")
    tokens = preparation.tokenize([Turn("human", "<image>\nwhat?"), Turn("gpt", "a cat")], [(100, 60)])
    (count,) = tokens.positions.tokens_of_image
    assert preparation.marked(tokens) == [
        ("<|im_start|>user\n<|vision_start|>", False),
        (f"[{count} vision tokens]", False),
        ("<|vision_end|>what?<|im_end|>\n<|im_start|>assistant\n", False),
        ("a cat<|im_end|>", True),
        ("\n", False),
    ]
