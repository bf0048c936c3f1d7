"""Drawing tokens by the Gumbel-max trick, with random numbers that do not depend on batches or workers.

The token with the largest sum of logit and Gumbel noise is a draw from the softmax. The noise comes from a
counter-based generator, splitmix64: the key is made of seed, sample, entry and answer, the counter of position and
token. So neither the batch, nor the worker, nor the order of answers changes a draw.

Shapes: B answers, V tokens.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

# constants of splitmix64 as signed numbers; products and sums of int64 wrap around
_STEP = 0x9E3779B97F4A7C15 - 2**64
_MIX = ((30, 0xBF58476D1CE4E5B9 - 2**64), (27, 0x94D049BB133111EB - 2**64))
_LAST_SHIFT = 31
_TOKENS_PER_POSITION = 2**32


def answer_key(seed: int, sample: int, entry: int, answer: int) -> int:
    """The key of the random numbers of one answer, a signed number of 64 bits.

    Args:
        sample: index of the sample in the data.
        entry: number of the entry of this sample, from 0.
        answer: number of the answer in the entry, from 0.
    """
    digest = hashlib.sha256(f"{seed} {sample} {entry} {answer}".encode()).digest()
    return int.from_bytes(digest[:8], "little", signed=True)


def gumbel_noise(keys_B: Tensor, position: int, num_tokens: int) -> Tensor:
    """Standard Gumbel noise for each token at a position of each answer: float64 [B, V].

    Args:
        keys_B: int64, see `answer_key`.
    """
    counters_V = torch.arange(1, num_tokens + 1, device=keys_B.device) + position * _TOKENS_PER_POSITION
    words_BV = keys_B[:, None] + counters_V * _STEP
    for shift, factor in _MIX:
        words_BV = (words_BV ^ _shifted(words_BV, shift)) * factor
    words_BV = words_BV ^ _shifted(words_BV, _LAST_SHIFT)
    # the upper 53 bits, in the middle of their interval: neither 0 nor 1
    uniform_BV = (_shifted(words_BV, 11).double() + 0.5) * 2.0**-53
    return -(-uniform_BV.log()).log()


def within_top_p(logits_BV: Tensor, top_p: float) -> Tensor:
    """The logits, with minus infinity outside the smallest set of most likely tokens whose mass reaches `top_p`.

    Among equal logits at the border, those of the smallest ids are in the set.
    """
    if top_p >= 1:
        return logits_BV
    sorted_BV, ids_BV = logits_BV.sort(dim=-1, descending=True, stable=True)
    masses_BV = sorted_BV.double().softmax(dim=-1)
    is_outside_BV = masses_BV.cumsum(dim=-1) - masses_BV >= top_p
    is_outside_BV[:, 0] = False
    return logits_BV.masked_fill(torch.empty_like(is_outside_BV).scatter(1, ids_BV, is_outside_BV), -torch.inf)


@dataclass(frozen=True, kw_only=True)
class Sampler:
    """Draws the next token of each answer of a batch; a `Choose` of `alignkd.vlm.families.generation`.

    Attributes:
        keys: `answer_key` of each answer.
    """

    keys: Sequence[int]
    temperature: float
    top_p: float

    def __call__(self, logits_BV: Tensor, position: int) -> Tensor:
        """Tokens int64 [B] for logits float32 [B, V]."""
        keys_B = torch.tensor(self.keys, dtype=torch.int64, device=logits_BV.device)
        kept_BV = within_top_p(logits_BV / self.temperature, self.top_p)
        return (kept_BV.double() + gumbel_noise(keys_B, position, logits_BV.shape[1])).argmax(dim=-1)


def _shifted(words: Tensor, bits: int) -> Tensor:
    """A logical shift to the right; that of torch copies the sign."""
    return (words >> bits) & ((1 << (64 - bits)) - 1)
