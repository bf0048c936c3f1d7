"""Prompts and label masks, corner cases included."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alignkd.vlm.data.turns import V1_SYSTEM, Turn
from alignkd.vlm.errors import LabelMaskError, SampleError
from alignkd.vlm.families.mobilevlm.inputs.templates import (
    TokenizedConversation,
    tokenize_conversation,
    tokenize_question,
)
from alignkd.vlm.families.mobilevlm.inputs.tokenizer import LegacyLlamaTokenizer
from alignkd.vlm.inputs.labels import IGNORE_LABEL, IMAGE_TOKEN_ID

GOLDEN = Path(__file__).parents[4] / "golden" / "mobilevlm_v2_tiny"
TOKENIZER = LegacyLlamaTokenizer(GOLDEN / "teacher" / "tokenizer.model")


def turns(*values: str) -> list[Turn]:
    return [Turn(("human", "gpt")[number % 2], value) for number, value in enumerate(values)]


def supervised_text(conversation: list[Turn], *, num_images: int) -> str:
    tokens = tokenize_conversation(conversation, template="v1", num_images=num_images, tokenizer=TOKENIZER)
    return TOKENIZER.decode([label for label in tokens.labels if label != IGNORE_LABEL])


def test_only_the_answers_are_supervised() -> None:
    text = supervised_text(turns("<image>\nWhat is it?", "a cup", "And that?", "a spoon"), num_images=1)
    assert text.split() == ["a", "cup", "a", "spoon"]


def test_image_in_the_middle_moves_to_the_head_of_its_turn() -> None:
    def ids(question: str) -> list[int]:
        conversation = turns(question, "a cup")
        return tokenize_conversation(conversation, template="v1", num_images=1, tokenizer=TOKENIZER).input_ids

    assert ids("What <image>is it?") == ids("<image>\nWhat is it?") == ids("What is it?<image>")


def test_several_images_of_a_turn_stay_where_they_are() -> None:
    def ids(*values: str, num_images: int) -> list[int]:
        return tokenize_conversation(
            turns(*values), template="v1", num_images=num_images, tokenizer=TOKENIZER
        ).input_ids

    between = ids("Is <image> like <image>?", "no", num_images=2)
    first, second = [place for place, token in enumerate(between) if token == IMAGE_TOKEN_ID]
    assert TOKENIZER.decode(between[first + 1 : second]).strip() == "like"
    # one of its own per turn: each moves to the head of its turn, as the original moves it
    own = ids("Is <image> red?", "no", "And <image> this?", "yes", num_images=2)
    assert own == ids("<image>\nIs  red?", "no", "<image>\nAnd  this?", "yes", num_images=2)


def test_a_first_turn_that_is_not_the_humans_is_dropped() -> None:
    with_greeting = [Turn("gpt", "Hello!"), *turns("What is it?", "a cup")]
    without = turns("What is it?", "a cup")
    tokenized = [
        tokenize_conversation(conversation, template="v1", num_images=0, tokenizer=TOKENIZER)
        for conversation in (with_greeting, without)
    ]
    assert tokenized[0] == tokenized[1]


def test_a_question_is_the_training_prompt_up_to_the_answer() -> None:
    conversation = turns("<image>\nWhat is it?", "a cup")
    training = tokenize_conversation(conversation, template="v1", num_images=1, tokenizer=TOKENIZER)
    question = tokenize_question(conversation[:1], template="v1", num_images=1, tokenizer=TOKENIZER)
    first_label = next(number for number, label in enumerate(training.labels) if label != IGNORE_LABEL)
    assert training.input_ids[:first_label] == question


@pytest.mark.parametrize(
    ("conversation", "num_images", "message"),
    [
        ([], 0, "empty conversation"),
        (turns("What is it?", "a cup"), 1, "0 <image>"),
        (turns("<image>\nWhat <image> is it?", "a cup"), 1, "2 <image>"),
        (turns("<image>\nWhat is it?", "a cup"), 0, "1 <image>"),
        ([Turn("human", "a"), Turn("human", "b")], 0, "must alternate"),
        ([Turn("cat", "a")], 0, "unknown speaker 'cat', expected 'human', 'gpt' or 'system'"),
        ([Turn("system", "a")], 0, "no human turn"),
        ([*turns("a", "b"), Turn("system", "c")], 0, "turn 2 is a system prompt; it may only come first"),
        ([Turn("system", "<image>"), *turns("a", "b")], 1, "<image> is in the system prompt"),
        ([Turn("system", "say </s>"), *turns("a", "b")], 0, "the label mask covers"),
        ([Turn("human", "a"), Turn("gpt", "b", False)], 0, "nothing would be trained"),
        ([Turn("gpt", "a"), Turn("human", "b"), Turn("gpt", "c", False)], 0, "nothing would be trained"),
        ([*turns("a", "b</s>"), Turn("human", "c"), Turn("gpt", "d", False)], 0, "a text holds '</s>' or an answer is"),
        ([Turn("gpt", "a")], 0, "no human turn"),
        ([Turn("gpt", "<image>"), *turns("What is it?", "a cup")], 1, "<image> is in a leading gpt turn"),
        (turns("say ' ASSISTANT: '", "ok ASSISTANT: no"), 0, "the label mask covers"),
    ],
)
def test_unusable_conversations_are_named(conversation: list[Turn], num_images: int, message: str) -> None:
    with pytest.raises(SampleError, match=message):
        tokenize_conversation(conversation, template="v1", num_images=num_images, tokenizer=TOKENIZER)


@pytest.mark.parametrize(
    ("conversation", "num_images", "message"),
    [
        (turns("q", "a"), 0, "template 'plain' needs an image"),
        ([Turn("system", "s"), *turns("<image>", "a")], 1, "no place for a system prompt; remove it, or use template"),
        ([Turn("human", "<image>"), Turn("gpt", "a", False)], 1, "nothing would be trained"),
        (turns("<image>", "a", "q", "a"), 1, r"found 4 turns \(human, gpt, human, gpt\)"),
        (turns("<image>"), 1, r"found 1 turns \(human\)"),
        ([Turn("gpt", "a"), Turn("human", "<image>")], 1, r"found 2 turns \(gpt, human\)"),
        (turns("q", "a <image>"), 1, "needs <image> in the human turn"),
        (turns("<image>", "a <unk> b <unk>"), 1, r"holds 2 <unk> \(id 0\)"),
    ],
)
def test_plain_takes_one_captioned_image(conversation: list[Turn], num_images: int, message: str) -> None:
    with pytest.raises(SampleError, match=message):
        tokenize_conversation(conversation, template="plain", num_images=num_images, tokenizer=TOKENIZER)


def tokenized(*conversation: Turn) -> TokenizedConversation:
    return tokenize_conversation(conversation, template="v1", num_images=0, tokenizer=TOKENIZER)


def test_a_system_turn_replaces_the_templates_own() -> None:
    plain = tokenized(*turns("What is it?", "a cup"))
    assert tokenized(Turn("system", V1_SYSTEM), *turns("What is it?", "a cup")) == plain
    brief = tokenized(Turn("system", "Be brief."), *turns("What is it?", "a cup"))
    assert brief.input_ids == TOKENIZER.encode("Be brief. USER: What is it? ASSISTANT: a cup</s>")
    assert [label for label in brief.labels if label > 0] == [label for label in plain.labels if label > 0]
    asked = [Turn("system", "Be brief."), Turn("human", "What is it?")]
    question = tokenize_question(asked, template="v1", num_images=0, tokenizer=TOKENIZER)
    assert question == brief.input_ids[: len(question)] and brief.labels[len(question)] > 0


@given(st.lists(st.booleans(), min_size=1, max_size=5), st.booleans(), st.data())
def test_a_masked_answer_changes_its_labels_alone(trained: list[bool], greeting: bool, data: st.DataObject) -> None:
    words = st.sampled_from(["a cup", "two  spoons ", "and\n", "1 2", "e\u0301"])
    rounds = [(data.draw(words), data.draw(words)) for _ in trained]
    conversation = [Turn("gpt", "Hello!")] * greeting
    for (question, answer), is_trained in zip(rounds, trained, strict=True):
        conversation += [Turn("human", question), Turn("gpt", answer, is_trained)]
    if not any(trained):
        with pytest.raises(LabelMaskError, match="nothing would be trained"):
            tokenized(*conversation)
        return
    everything = tokenized(*(Turn(turn.speaker, turn.value) for turn in conversation))
    some = tokenized(*conversation)
    assert some.input_ids == everything.input_ids
    # each answer is a run of labels up to its </s>
    wanted, number = [], 0
    for label in everything.labels:
        wanted.append(label if label == IGNORE_LABEL or trained[number] else IGNORE_LABEL)
        number += label == TOKENIZER.eos_token_id
    assert some.labels == wanted and number == len(trained)


def test_plain_supervises_the_caption_as_it_is_and_the_line_end() -> None:
    conversation = turns("What is <image> this?", "  a cup \n")
    tokens = tokenize_conversation(conversation, template="plain", num_images=1, tokenizer=TOKENIZER)
    assert tokens.input_ids == [1, IMAGE_TOKEN_ID, *TOKENIZER.encode("  a cup \n\n", add_bos=False)]
    assert tokens.labels == [IGNORE_LABEL, IGNORE_LABEL, *tokens.input_ids[2:]]


def test_a_wholly_masked_sample_has_its_own_error() -> None:
    with pytest.raises(LabelMaskError):
        tokenize_conversation(turns("What is it?"), template="v1", num_images=0, tokenizer=TOKENIZER)
    with pytest.raises(SampleError) as other:
        tokenize_conversation(turns("What is it?"), template="v1", num_images=1, tokenizer=TOKENIZER)
    assert not isinstance(other.value, LabelMaskError)


@pytest.mark.parametrize(("question", "num_images"), [("What is it?", 1), ("<image>\nWhat is it?", 0)])
def test_a_question_needs_its_image_in_the_text(question: str, num_images: int) -> None:
    with pytest.raises(SampleError, match="<image> in the conversation but"):
        tokenize_question(turns(question), template="v1", num_images=num_images, tokenizer=TOKENIZER)


# The marks of the template itself inside a text are refused above; everything else must survive.
texts = st.text(min_size=1).filter(lambda text: text.strip() and not any(mark in text for mark in ("</s>", "<", ":")))


@given(st.lists(st.tuples(texts, texts), min_size=1, max_size=4))
def test_labels_repeat_the_input_or_are_ignored(rounds: list[tuple[str, str]]) -> None:
    values = [value for pair in rounds for value in pair]
    values[0] = "<image>\n" + values[0]
    try:
        tokens = tokenize_conversation(turns(*values), template="v1", num_images=1, tokenizer=TOKENIZER)
    except SampleError as error:
        assert "label mask" in str(error)  # what the original would silently mask
        return
    assert tokens.input_ids.count(IMAGE_TOKEN_ID) == 1
    assert all(label in (IGNORE_LABEL, token) for label, token in zip(tokens.labels, tokens.input_ids, strict=True))
    ends = [number for number, token in enumerate(tokens.input_ids) if token == TOKENIZER.eos_token_id]
    assert len(ends) == len(rounds) and all(tokens.labels[end] == TOKENIZER.eos_token_id for end in ends)
