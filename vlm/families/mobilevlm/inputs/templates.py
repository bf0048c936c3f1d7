"""Prompt templates `plain` (pre-training) and `v1` (fine-tuning): text pieces and which of them are supervised.

The label masks are those of the original training code, its corner cases included; the golden samples pin them.
`IMAGE_TOKEN_ID` stands where an image is, `IGNORE_LABEL` marks positions that are not supervised.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, repeat
from typing import Literal

from alignkd.vlm.data.turn_checks import IMAGE_PLACEHOLDER, OR_GENERATE, check_trained, check_turns, split_system
from alignkd.vlm.data.turns import V1_SYSTEM, Turn
from alignkd.vlm.errors import LabelMaskError, SampleError
from alignkd.vlm.families.mobilevlm.inputs.tokenizer import LegacyLlamaTokenizer
from alignkd.vlm.inputs.labels import IGNORE_LABEL, IMAGE_TOKEN_ID

TemplateName = Literal["plain", "v1"]
V1_END_OF_TURN = "</s>"
V1_ANSWER = " ASSISTANT: "
PLAIN_SEPARATOR = "\n"
ROLE_NAMES = {"human": "USER", "gpt": "ASSISTANT"}
# Part of the fingerprint. Raise it when the bytes of a prompt or of a label mask change.
TEMPLATE_VERSION = 1


@dataclass(frozen=True)
class TokenizedConversation:
    """`input_ids` [T] with `IMAGE_TOKEN_ID` at each image, `labels` [T] with `IGNORE_LABEL` where not supervised."""

    input_ids: list[int]
    labels: list[int]


def template_fingerprint(name: TemplateName) -> str:
    """Identify the template: everything in it that decides token ids and labels."""
    return f"{name}:{TEMPLATE_VERSION}"


def tokenize_conversation(
    turns: Sequence[Turn], *, template: TemplateName, num_images: int, tokenizer: LegacyLlamaTokenizer
) -> TokenizedConversation:
    """Token ids and labels of one conversation for training.

    Args:
        num_images: number of images of the sample; the conversation must contain as many `<image>`.

    Raises:
        SampleError: the conversation is empty, its speakers do not alternate, or the number of `<image>` is wrong.
        LabelMaskError: the original's label mask does not fit: it prints a warning and masks the whole sample. Or no
            answer is trained on.
    """
    check_turns(turns, num_images=num_images)
    check_trained(turns)
    if template == "plain":
        return _tokenize_plain(turns, num_images, tokenizer)
    return _tokenize_v1(turns, num_images, tokenizer)


def tokenize_question(
    turns: Sequence[Turn],
    *,
    template: TemplateName,
    num_images: int,
    tokenizer: LegacyLlamaTokenizer,
    verbatim: bool = False,
) -> list[int]:
    """Token ids of a prompt that ends where the answer begins; the last turn is the human's.

    Args:
        verbatim: keep the turns as they stand, `<image>` and blanks included, as the original's evaluation does.

    Raises:
        SampleError: as `tokenize_conversation`; template `plain` ignores the text.
    """
    if template == "plain":
        _refuse_several(num_images)
        return tokenize_with_image(IMAGE_PLACEHOLDER, tokenizer) if num_images else [tokenizer.bos_token_id]
    check_turns(turns, num_images=num_images)
    prompt = _v1_prompt(turns, 0 if verbatim else num_images) + ROLE_NAMES["gpt"] + ":"
    return tokenize_with_image(prompt, tokenizer) if num_images else tokenizer.encode(prompt)


def tokenize_with_image(prompt: str, tokenizer: LegacyLlamaTokenizer) -> list[int]:
    """Ids of `prompt`, each text around `<image>` encoded on its own, one BOS, `IMAGE_TOKEN_ID` for each image."""
    first, *rest = (tokenizer.encode(text) for text in prompt.split(IMAGE_PLACEHOLDER))
    ids = list(first)
    for chunk in rest:
        ids.append(IMAGE_TOKEN_ID)
        ids.extend(chunk[1:])
    return ids


def _tokenize_plain(turns: Sequence[Turn], num_images: int, tokenizer: LegacyLlamaTokenizer) -> TokenizedConversation:
    if not num_images:
        raise SampleError("template 'plain' needs an image (it is for captions); use template 'v1' for text")
    _refuse_several(num_images)
    if split_system(turns)[0] is not None:
        raise SampleError(
            "template 'plain' writes no prompt, so it has no place for a system prompt; remove it, or use template 'v1'"
        )
    if [turn.speaker for turn in turns] != ["human", "gpt"]:
        speakers = ", ".join(turn.speaker for turn in turns)
        step = "" if "gpt" in speakers else f"; give the question an answer, {OR_GENERATE}"
        raise SampleError(
            f"template 'plain' takes one human and one gpt turn, found {len(turns)} turns ({speakers}){step}"
        )
    if IMAGE_PLACEHOLDER not in turns[0].value:
        raise SampleError(f"template 'plain' needs {IMAGE_PLACEHOLDER} in the human turn, found it in the gpt turn")
    # The question is dropped: pre-training maps an image straight to its caption.
    input_ids = tokenize_with_image(IMAGE_PLACEHOLDER + turns[1].value + PLAIN_SEPARATOR, tokenizer)
    _refuse_padding(input_ids, tokenizer)
    num_prompt = len(tokenize_with_image(IMAGE_PLACEHOLDER, tokenizer))
    labels = [IGNORE_LABEL] * num_prompt + input_ids[num_prompt:]
    return TokenizedConversation(input_ids, labels)


def _refuse_several(num_images: int) -> None:
    """Refuse several images: pre-training drops the question and with it the positions of the images."""
    if num_images > 1:
        raise SampleError(f"template 'plain' captions one image, found {num_images}; use template 'v1' for several")


def _refuse_padding(input_ids: Sequence[int], tokenizer: LegacyLlamaTokenizer) -> None:
    """Refuse `<unk>` in the text: the original pads with it, so it neither counts nor attends to it."""
    if found := input_ids.count(tokenizer.unk_token_id):
        raise LabelMaskError(
            f"the text holds {found} <unk> (id {tokenizer.unk_token_id}), which the original treats as padding; "
            "remove it, or the character that is not in the vocabulary"
        )


def _v1_turns(turns: Sequence[Turn]) -> tuple[str, Sequence[Turn]]:
    """The system prompt, and the turns from the first human one."""
    system, turns = split_system(turns)
    if turns and ROLE_NAMES[turns[0].speaker] != "USER":
        if IMAGE_PLACEHOLDER in turns[0].value:
            raise SampleError(
                f"{IMAGE_PLACEHOLDER} is in a leading gpt turn, which is dropped; move it to a human turn"
            )
        turns = turns[1:]  # the original drops a first turn that is not the human's
    if not turns:
        raise SampleError("the conversation has no human turn")
    return V1_SYSTEM if system is None else system.value, turns


def _v1_prompt(turns: Sequence[Turn], moved_images: int) -> str:
    """The prompt; with `moved_images`, `<image>` comes first in its turn."""
    system, turns = _v1_turns(turns)
    prompt = system + " "
    for number, turn in enumerate(turns):
        expected = ("USER", "ASSISTANT")[number % 2]
        if ROLE_NAMES[turn.speaker] != expected:
            raise SampleError(f"turn {number} is from {turn.speaker!r}; human and gpt must alternate")
        value = _image_first(turn.value) if moved_images else turn.value
        # In the original an empty value is an open turn: the role and a colon.
        prompt += f"{expected}: {value}" + (" ", V1_END_OF_TURN)[number % 2] if value else f"{expected}:"
    return prompt


def _image_first(value: str) -> str:
    """Move `<image>` to the start of its turn, on a line of its own, as the original does.

    Several in one turn stay in place, because the text refers to each by its position. (The original would merge them
    into one; LLaVA-NeXT's data code, which supports several, leaves them in place.)
    """
    if value.count(IMAGE_PLACEHOLDER) != 1:
        return value
    return (IMAGE_PLACEHOLDER + "\n" + value.replace(IMAGE_PLACEHOLDER, "").strip()).strip()


def _tokenize_v1(turns: Sequence[Turn], num_images: int, tokenizer: LegacyLlamaTokenizer) -> TokenizedConversation:
    prompt = _v1_prompt(turns, num_images)

    def encode(text: str) -> list[int]:
        return tokenize_with_image(text, tokenizer) if num_images else tokenizer.encode(text)

    input_ids = encode(prompt)
    _refuse_padding(input_ids, tokenizer)
    labels = list(input_ids)
    _mask(labels, 0, 1)
    # As the original: rounds are tokenised separately; the BOS of each stands for the `</s>` that the split removed.
    position, trained = 1, _trained_rounds(turns, prompt)
    for round_text, is_trained in zip(prompt.split(V1_END_OF_TURN), trained, strict=False):
        question, *answers = round_text.split(V1_ANSWER)
        if len(answers) != 1:
            break
        length = len(encode(round_text))
        _mask(labels, position, position + (len(encode(question + V1_ANSWER)) - 2 if is_trained else length))
        position += length
    _mask(labels, position, len(labels))
    if position != len(input_ids):
        raise LabelMaskError(
            f"the label mask covers {position} of {len(input_ids)} tokens, so the original would train on nothing; "
            f"give every question an answer ({OR_GENERATE}) and remove ' ASSISTANT: ' and '</s>' from the texts"
        )
    check_trained(_v1_turns(turns)[1])
    return TokenizedConversation(input_ids, labels)


def _trained_rounds(turns: Sequence[Turn], prompt: str) -> Iterator[bool]:
    """Whether each round of a prompt is trained on, without end.

    Raises:
        LabelMaskError: a text holds `</s>`, so that rounds are not exchanges, and an answer is not trained on.
    """
    answers = [turn.trained for turn in _v1_turns(turns)[1] if turn.speaker == "gpt"]
    if not all(answers) and prompt.count(V1_END_OF_TURN) != len(answers):
        raise LabelMaskError(
            f"a text holds {V1_END_OF_TURN!r} or an answer is empty, so it is unknown which tokens are of the masked "
            "answer; remove it from the texts"
        )
    return chain(answers, repeat(True))


def _mask(labels: list[int], start: int, stop: int) -> None:
    for number in range(start, min(stop, len(labels))):
        labels[number] = IGNORE_LABEL
