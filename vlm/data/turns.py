"""Turns of a conversation, and the system prompt of template `v1`."""

from dataclasses import dataclass

V1_SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)


@dataclass(frozen=True)
class Turn:
    """One utterance: `speaker` is "human" or "gpt"."""

    speaker: str
    value: str
