"""Turns of a conversation, and the system prompt of template `v1`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

V1_SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)


@dataclass(frozen=True)
class Turn:
    """One utterance.

    Attributes:
        speaker: "human", "gpt" or "system"; a system prompt can only be the first turn.
        value: the text, with `<image>` where an image is.
        trained: of an answer: whether its tokens are supervised. Other turns never are, whatever this is.
    """

    speaker: str
    value: str
    trained: bool = True


def conversations_of(turns: Sequence[Turn]) -> list[dict[str, Any]]:
    """Turns as stores hold them: `{"from", "value"}`, and `"trained": False` of an answer that is not trained on."""
    return [
        {"from": turn.speaker, "value": turn.value}
        | ({} if turn.trained or turn.speaker != "gpt" else {"trained": False})
        for turn in turns
    ]


def turns_of(conversations: Sequence[Mapping[str, Any]]) -> tuple[Turn, ...]:
    """The turns of a stored conversation: the inverse of `conversations_of`."""
    return tuple(Turn(turn["from"], turn["value"], turn.get("trained", True)) for turn in conversations)
