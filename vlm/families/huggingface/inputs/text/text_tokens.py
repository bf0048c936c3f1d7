"""Text -> ids, and where in the text each token begins and ends."""

import json
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

_SPACE = "\u2581"  # how sentencepiece writes a space


@dataclass(frozen=True, kw_only=True)
class TextTokens:
    """Ids of a text with the characters of each.

    Attributes:
        ids: int32 [L].
        starts, ends: int64 [L], characters of each token; a token that is not in the text has none. Both ascend.
    """

    ids: NDArray[np.int32]
    starts: NDArray[np.int64]
    ends: NDArray[np.int64]

    def overlapping(self, start: int, end: int) -> NDArray[np.int64]:
        """Numbers of the tokens that hold any of the characters `start` to `end`."""
        return np.flatnonzero((self.starts < end) & (self.ends > start) & (self.ends > self.starts))


@dataclass(frozen=True)
class FastTokenizer:
    """The tokenizer as the processor calls it, with the characters of each token.

    Args:
        tokenizer: of transformers. From then on it no longer leaves spaces out of the characters of a token; its ids
            stay the same.
    """

    tokenizer: Any
    _backend: Tokenizer = field(init=False, repr=False)

    def __post_init__(self) -> None:
        backend = self.tokenizer.backend_tokenizer
        keep_spaces(backend)
        object.__setattr__(self, "_backend", backend)

    def __call__(self, text: str) -> TextTokens:
        """Ids of a rendered text. The beginning-of-text token is added unless the text starts with it."""
        bos = self.tokenizer.bos_token
        found = self._backend.encode(text, add_special_tokens=not (bos and text.startswith(bos)))
        offsets = np.array(found.offsets, np.int64).reshape(-1, 2)
        return TextTokens(ids=np.array(found.ids, np.int32), starts=offsets[:, 0], ends=offsets[:, 1])

    def plain(self, text: str) -> list[int]:
        """Ids of a text without a beginning-of-text token."""
        return list(self._backend.encode(text, add_special_tokens=False).ids)

    def text(self, ids: NDArray[np.int32] | list[int]) -> str:
        """The text of ids, special tokens included."""
        return str(self._backend.decode([int(token) for token in ids], skip_special_tokens=False))

    def is_same_text(self, ids: NDArray[np.int32], text: str) -> bool:
        """Whether the ids read as `text`, white space left out, and normalised as the tokenizer does it."""
        read = _squeezed(self.text(ids))
        if read == _squeezed(text):
            return True
        normalizer = self._backend.normalizer
        return normalizer is not None and read == _squeezed(normalizer.normalize_str(text))


def keep_spaces(backend: Tokenizer) -> None:
    """Count spaces as characters of their token.

    Byte-level tokenizers can be set to leave them out. A token of spaces alone then has no characters at all.
    """
    wanted = json.loads(backend.to_str())["post_processor"]
    if _without_trimming(wanted):
        empty = json.loads(Tokenizer.from_str(_EMPTY).to_str())
        backend.post_processor = Tokenizer.from_str(json.dumps(empty | {"post_processor": wanted})).post_processor


_EMPTY = '{"version": "1.0", "added_tokens": [], "model": {"type": "BPE", "vocab": {}, "merges": []}}'


def _without_trimming(part: Any) -> bool:
    """Turn `trim_offsets` off in the description of a post-processor; whether it was on anywhere."""
    if isinstance(part, list):
        return sum(_without_trimming(member) for member in part) > 0
    if not isinstance(part, dict):
        return False
    found = _without_trimming(list(part.values()))
    if part.get("trim_offsets"):
        part["trim_offsets"], found = False, True
    return found


def _squeezed(text: str) -> str:
    return "".join(text.replace(_SPACE, " ").split())
