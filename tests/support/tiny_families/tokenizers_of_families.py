"""Byte-level BPE tokenizers of a few hundred entries with a family's special tokens."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Final

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

TEXT: Final = [
    "what colour is the cat? the cat is black and the dog is brown.",
    "describe the image. a dog and two birds near the window of the house",
    "how many birds are there? there are two birds on the sofa, one red and one green",
    "is the sofa red, green or blue? it is blue. what is in the picture? a window near the sofa",
    "user assistant system You are a helpful assistant. USER: ASSISTANT: User: Assistant: model",
    "今天天气很好。 你好，世界 قطة على الأريكة", "1234567890 (a), [b]; {c}\n\n",
]  # fmt: skip
ENTRIES: Final = 380
"""Entries before the special tokens that follow the text: 256 bytes, the first special tokens, merges."""


@dataclass(frozen=True)
class Words:
    """The special tokens of a family.

    Attributes:
        first: Tokens with the smallest ids, in order.
        last: Tokens after all others, in order.
        bos: Begin token that the tokenizer puts before a text; None for families without.
        eos: End token by the tokenizer's own settings.
        pad: Padding token.
        named: Attribute of the tokenizer -> token, as `image_token`.
        plain: Tokens of `last` that are added, but not special, as `<tool_call>` in Qwen.
    """

    first: Sequence[str]
    last: Sequence[str]
    bos: str | None
    eos: str
    pad: str
    named: Mapping[str, str] = field(default_factory=dict)
    plain: Sequence[str] = ()


@cache
def _merges(first: tuple[str, ...]) -> str:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=ENTRIES,
        special_tokens=list(first),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXT, trainer)
    return tokenizer.to_str()


def tokenizer_of(words: Words) -> PreTrainedTokenizerFast:
    """A tokenizer with `words`; the same words give the same tokenizer."""
    tokenizer = Tokenizer.from_str(_merges(tuple(words.first)))
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(w, special=True) for w in words.last if w not in words.plain])
    tokenizer.add_tokens([AddedToken(w, special=False, normalized=False) for w in words.plain])
    if words.bos is not None:
        begin = (words.bos, tokenizer.token_to_id(words.bos))
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{words.bos} $A", pair=f"{words.bos} $A {words.bos} $B", special_tokens=[begin]
        )
    else:
        tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    named: dict[str, Any] = {"bos_token": words.bos} if words.bos is not None else {}
    if words.named:
        named["extra_special_tokens"] = dict(words.named)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=words.eos, pad_token=words.pad, model_max_length=4096, **named
    )
