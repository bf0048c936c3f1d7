"""Turns of a conversation -> the messages that chat templates take."""

from collections.abc import Sequence
from typing import Any

from alignkd.vlm.data.turn_checks import IMAGE_PLACEHOLDER, OR_GENERATE, check_trained, check_turns
from alignkd.vlm.data.turns import Turn
from alignkd.vlm.errors import SampleError

ROLES = {"human": "user", "gpt": "assistant", "system": "system"}

Message = dict[str, Any]


def messages_of(turns: Sequence[Turn]) -> list[Message]:
    """One message per turn: an image part for each `<image>`, text parts for the pieces around it.

    Pieces of a human turn are stripped. Pieces of white space are left out.
    """
    return [{"role": ROLES[turn.speaker], "content": _content(turn)} for turn in turns]


def text_of(message: Message) -> str:
    """The text of a message, without its images."""
    content = message["content"]
    if isinstance(content, str):
        return content
    return "".join(part["text"] for part in content if part["type"] == "text")


def _content(turn: Turn) -> list[dict[str, str]]:
    parts: list[dict[str, str]] = []
    for number, piece in enumerate(turn.value.split(IMAGE_PLACEHOLDER)):
        if number:
            parts.append({"type": "image"})
        if piece.strip():
            parts.append({"type": "text", "text": piece.strip() if turn.speaker == "human" else piece})
    return parts


def check_training(turns: Sequence[Turn], *, num_images: int) -> None:
    """Refuse conversations without anything to learn, or whose images or speakers are unclear.

    Raises:
        SampleError: names what is wrong and what to do. LabelMaskError: no answer is trained on.
    """
    _check(turns, num_images)
    if not any(turn.speaker == "gpt" for turn in turns):
        raise SampleError(
            "the conversation has no gpt turn, so no token would be trained; give the question an answer, "
            + OR_GENERATE
        )
    check_trained(turns)


def check_question(turns: Sequence[Turn], *, num_images: int) -> None:
    """Refuse conversations that do not end with a question.

    Raises:
        SampleError: names what is wrong and what to do.
    """
    _check(turns, num_images)
    if turns[-1].speaker != "human":
        raise SampleError(f"the last turn is from {turns[-1].speaker!r}; end with the human turn to be answered")


def _check(turns: Sequence[Turn], num_images: int) -> None:
    check_turns(turns, num_images=num_images)
    for number, turn in enumerate(turns):
        if turn.speaker == "gpt" and IMAGE_PLACEHOLDER in turn.value:
            raise SampleError(f"{IMAGE_PLACEHOLDER} is in turn {number}, which is from 'gpt'; move it to a human turn")
        if turn.speaker == "gpt" and not turn.value.strip():
            raise SampleError(f"turn {number} is an empty answer; give it a text, or remove it with its question")
