"""Turns of a conversation, and the system prompt of template `v1`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

V1_SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)


@dataclass(frozen=True, kw_only=True)
class Generated:
    """How a model wrote an answer, see `alignkd generate`; what is None is not known.

    Attributes:
        by: name of the model.
        logprob: sum of the natural log-probabilities of its tokens, the token that ends it included; 0 or less.
        tokens: number of these tokens.
        finished: whether the model ended the answer itself; False if a length limit cut it.
    """

    by: str | None = None
    logprob: float | None = None
    tokens: int | None = None
    finished: bool | None = None

    @property
    def logprob_per_token(self) -> float | None:
        """Mean log-probability of a token; None without tokens, or if either figure is not known."""
        return None if self.logprob is None or not self.tokens else self.logprob / self.tokens

    def to_json(self) -> dict[str, Any] | bool:
        """The value of the key `generated` in data files: what is known, or true if nothing is."""
        return {name: value for name, value in vars(self).items() if value is not None} or True


@dataclass(frozen=True)
class Turn:
    """One utterance.

    Attributes:
        speaker: "human", "gpt" or "system"; a system prompt can only be the first turn.
        value: the text, with `<image>` where an image is.
        trained: of an answer: whether its tokens are supervised. Other turns never are, whatever this is.
        generated: of an answer that a model wrote: how; None for other turns.
    """

    speaker: str
    value: str
    trained: bool = True
    generated: Generated | None = None


def conversations_of(turns: Sequence[Turn]) -> list[dict[str, Any]]:
    """Turns as stores hold them.

    They are `{"from", "value"}`, with `"trained": False` of an answer that is not trained on and `"generated": True`
    of one that a model wrote.
    """
    return [{"from": turn.speaker, "value": turn.value} | _marks(turn) for turn in turns]


def turns_of(conversations: Sequence[Mapping[str, Any]]) -> tuple[Turn, ...]:
    """The turns of a stored conversation: the inverse of `conversations_of`, without how answers were written."""
    return tuple(
        Turn(turn["from"], turn["value"], turn.get("trained", True), Generated() if turn.get("generated") else None)
        for turn in conversations
    )


def questions_without_answer(turns: Sequence[Turn]) -> int:
    """Number of human turns that no gpt turn follows."""
    speakers = [*(turn.speaker for turn in turns), ""]
    return sum(pair[0] == "human" and pair[1] != "gpt" for pair in pairwise(speakers))


def _marks(turn: Turn) -> dict[str, bool]:
    if turn.speaker != "gpt":
        return {}
    return ({} if turn.trained else {"trained": False}) | ({} if turn.generated is None else {"generated": True})
