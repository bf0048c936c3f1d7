"""From a conversation and image bytes to what a model eats: used by the teacher pass, the trainer and evaluation."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vlm.errors import SampleError
from vlm.images import ImageProcessor
from vlm.position_map import PositionMap, position_map
from vlm.templates import (
    IGNORE_LABEL,
    TemplateName,
    Turn,
    template_fingerprint,
    tokenize_conversation,
    tokenize_question,
)
from vlm.tokenizer import LegacyLlamaTokenizer


class OverlongError(SampleError):
    """The sample has more embedded tokens than `max_tokens`; it is dropped, never truncated."""


def is_overlong(num_tokens: int, max_tokens: int) -> bool:
    """Whether a sample of so many embedded tokens (text + vision) is dropped."""
    return num_tokens > max_tokens


def overlong_error(num_tokens: int, max_tokens: int) -> OverlongError:
    """Says that a sample is overlong."""
    return OverlongError(f"{num_tokens} tokens, more than max_tokens {max_tokens}; dropped")


@dataclass(frozen=True, kw_only=True)
class Tokens:
    """A sample without its pixels: `input_ids`, `labels` of T, and the position map of the spliced sequence."""

    input_ids: list[int]
    labels: list[int]
    positions: PositionMap


@dataclass(frozen=True, kw_only=True)
class Example:
    """One tokenised sample.

    Attributes:
        input_ids, labels: int32 [T].
        pixel_values: float32 [3, image_size, image_size], or None without an image.
        positions: the position map of the spliced sequence.
    """

    input_ids: NDArray[np.int32]
    labels: NDArray[np.int32]
    pixel_values: NDArray[np.float32] | None
    positions: PositionMap


@dataclass(frozen=True, kw_only=True)
class ExampleBuilder:
    """Tokenizer, template and image processor of a checkpoint.

    Attributes:
        vision_tokens: P, tokens that one image becomes.
        max_tokens: most embedded tokens (text + vision) of a sample, or None.
    """

    tokenizer: LegacyLlamaTokenizer
    template: TemplateName
    image_processor: ImageProcessor
    vision_tokens: int
    max_tokens: int | None = None

    @property
    def fingerprint(self) -> dict[str, str]:
        """What decides a sample's tokens and pixels, by name; teacher and student must agree on all of it."""
        return {
            "tokenizer": self.tokenizer.fingerprint,
            "template": template_fingerprint(self.template),
            "image_processor": self.image_processor.fingerprint,
            "vision_tokens": str(self.vision_tokens),
        }

    def tokenize(self, turns: Sequence[Turn], *, has_image: bool) -> Tokens:
        """The tokens of a training example of any length; no image is looked at.

        Raises:
            SampleError: unusable conversation.
        """
        tokens = tokenize_conversation(turns, template=self.template, has_image=has_image, tokenizer=self.tokenizer)
        return self._place(tokens.input_ids, tokens.labels)

    def build(self, turns: Sequence[Turn], image_bytes: bytes | None) -> Example:
        """The training example of a conversation.

        Raises:
            SampleError: unusable conversation or image. OverlongError: more than `max_tokens`.
        """
        return self._example(self.tokenize(turns, has_image=image_bytes is not None), image_bytes)

    def build_question(self, turns: Sequence[Turn], image_bytes: bytes | None) -> Example:
        """A prompt that ends where the answer begins (no labels), for generation."""
        input_ids = tokenize_question(
            turns, template=self.template, has_image=image_bytes is not None, tokenizer=self.tokenizer
        )
        return self._example(self._place(input_ids, [IGNORE_LABEL] * len(input_ids)), image_bytes)

    def _place(self, input_ids: list[int], labels: list[int]) -> Tokens:
        positions = position_map(input_ids, labels, vision_tokens=self.vision_tokens)
        return Tokens(input_ids=input_ids, labels=labels, positions=positions)

    def _example(self, tokens: Tokens, image_bytes: bytes | None) -> Example:
        if self.max_tokens is not None and is_overlong(tokens.positions.length, self.max_tokens):
            raise overlong_error(tokens.positions.length, self.max_tokens)
        return Example(
            input_ids=np.asarray(tokens.input_ids, np.int32),
            labels=np.asarray(tokens.labels, np.int32),
            pixel_values=None if image_bytes is None else self.image_processor(image_bytes),
            positions=tokens.positions,
        )
