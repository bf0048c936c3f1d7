"""Generation with a KV cache for every family: which token comes next, when an answer ends, how probable it was.

Shapes: B prompts, V tokens.
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from alignkd.vlm.errors import InputError
from alignkd.vlm.families.family import Vision, VisionLanguageModel
from alignkd.vlm.finite import is_finite
from alignkd.vlm.inputs.examples import Example

# Logits float32 [B, V] of the next tokens and their number in the answers, from 0 -> tokens int64 [B].
Choose = Callable[[Tensor, int], Tensor]


@dataclass(frozen=True, kw_only=True)
class Continuation:
    """What a model wrote after a prompt.

    Attributes:
        ids: the tokens, without the one that ends the answer.
        finished: whether a token that ends answers came; False if the limit cut the answer.
        logprob: sum of the natural log-probabilities of the tokens under the model's own distribution (temperature 1,
            float32), with that of the token that ends the answer.
    """

    ids: tuple[int, ...]
    finished: bool
    logprob: float

    @property
    def num_tokens(self) -> int:
        """Tokens of `logprob`: those of the answer, and the one that ends it."""
        return len(self.ids) + self.finished


def most_probable(logits_BV: Tensor, position: int) -> Tensor:
    """Greedy choice; among equals the smallest id."""
    return logits_BV.argmax(dim=-1)


@torch.no_grad()
def generate(
    model: VisionLanguageModel,
    prompts: Sequence[Example],
    *,
    limits: Sequence[int],
    stop_ids: Collection[int],
    choose: Choose = most_probable,
    num_tokens: int | None = None,
    vision: Vision | None = None,
    check: Callable[[], object] = lambda: None,
) -> list[Continuation]:
    """Continue prompts of any lengths in one batch.

    Args:
        limits: largest number of tokens of each answer, at least 1.
        stop_ids: ids that end an answer.
        choose: chooses the next token of every prompt.
        num_tokens: columns of the head that are tokens, where the others are padding; None: all.
        vision: the encoded images of all prompts, in their order; None: those that the prompts hold are encoded.
        check: called before every token; may raise.

    Raises:
        InputError: logits that are not finite.
    """
    tally = _Tally(limits, stop_ids, model.device)
    decoding = model.decoding(prompts, vision)
    given_BV = next(decoding)
    for position in range(max(limits)):
        check()
        logits_BV = _checked(given_BV)[:, :num_tokens].float()
        tokens_B = choose(logits_BV, position)
        if tally.add(tokens_B, logits_BV.log_softmax(dim=-1).gather(1, tokens_B[:, None])[:, 0]):
            break
        given_BV = decoding.send(tokens_B)
    decoding.close()
    return tally.continuations()


def generate_greedy(
    model: VisionLanguageModel, prompts: Sequence[Example], *, max_new_tokens: int, stop_ids: Collection[int]
) -> list[list[int]]:
    """The most probable continuation of each prompt, without the token of `stop_ids` that ends it.

    Returns:
        One list of at most `max_new_tokens` token ids per prompt, in the order of `prompts`.

    Raises:
        InputError: logits that are not finite.
    """
    found = generate(model, prompts, limits=[max_new_tokens] * len(prompts), stop_ids=stop_ids)
    return [list(one.ids) for one in found]


@torch.no_grad()
def stream_greedy(
    model: VisionLanguageModel, prompt: Example, *, max_new_tokens: int, stop_ids: Collection[int]
) -> Iterator[int]:
    """The tokens of `generate_greedy` for one prompt, each as soon as it is computed."""
    decoding = model.decoding([prompt])
    logits_BV = next(decoding)
    for position in range(max_new_tokens):
        tokens_B = most_probable(_checked(logits_BV), position)
        if (token := int(tokens_B.item())) in stop_ids:
            return
        yield token
        if position < max_new_tokens - 1:
            logits_BV = decoding.send(tokens_B)


def _checked(logits_BV: Tensor) -> Tensor:
    """The logits themselves.

    Raises:
        InputError: logits that are not finite, so that no token is the most probable.
    """
    if not is_finite(logits_BV):
        raise InputError(
            f"the logits are not finite (NaN or infinity) in {str(logits_BV.dtype).removeprefix('torch.')}; the "
            "checkpoint's training diverged, or its values do not fit: try dtype float32"
        )
    return logits_BV


class _Tally:
    """The tokens of a batch so far, and which answers go on; rows of answers that ended are not counted further."""

    def __init__(self, limits: Sequence[int], stop_ids: Collection[int], device: torch.device) -> None:
        self._limits_B = torch.tensor(limits, dtype=torch.int64, device=device)
        self._stop_E = torch.tensor(sorted(stop_ids), dtype=torch.int64, device=device)
        self._steps: list[Tensor] = []
        self._counts_B = torch.zeros_like(self._limits_B)
        self._finished_B = torch.zeros_like(self._limits_B, dtype=torch.bool)
        self._active_B = self._limits_B > 0
        self._sums_B = torch.zeros_like(self._limits_B, dtype=torch.float64)

    def add(self, tokens_B: Tensor, logprobs_B: Tensor) -> bool:
        """Count the next tokens; return whether all answers have ended."""
        active_B = self._active_B
        self._steps.append(tokens_B)
        self._sums_B += torch.where(active_B, logprobs_B.double(), 0.0)
        self._counts_B += active_B
        self._finished_B |= active_B & torch.isin(tokens_B, self._stop_E)
        self._active_B = active_B & ~self._finished_B & (self._counts_B < self._limits_B)
        return not bool(self._active_B.any())

    def continuations(self) -> list[Continuation]:
        """The answers."""
        rows = zip(
            torch.stack(self._steps, dim=1).tolist(),
            self._counts_B.tolist(),
            self._finished_B.tolist(),
            self._sums_B.tolist(),
            strict=True,
        )
        return [
            Continuation(ids=tuple(ids[: count - finished]), finished=finished, logprob=logprob)
            for ids, count, finished, logprob in rows
        ]
