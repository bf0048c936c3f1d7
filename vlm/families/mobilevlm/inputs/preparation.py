"""From a conversation and image bytes to the model's input, for the teacher pass, training and evaluation."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from alignkd.vlm.data.turns import Turn
from alignkd.vlm.errors import ImageError, SampleError
from alignkd.vlm.families.mobilevlm.inputs.images import ImageProcessor
from alignkd.vlm.families.mobilevlm.inputs.templates import (
    TemplateName,
    template_fingerprint,
    tokenize_conversation,
    tokenize_question,
)
from alignkd.vlm.families.mobilevlm.inputs.tokenizer import LegacyLlamaTokenizer
from alignkd.vlm.inputs.labels import IGNORE_LABEL
from alignkd.vlm.inputs.position_map import PositionMap, position_map


class OverlongError(SampleError):
    """The sample has more embedded tokens than `max_tokens`. It is dropped, not truncated."""


def is_overlong(num_tokens: int, max_tokens: int) -> bool:
    """Whether a sample with `num_tokens` embedded tokens (text + vision) is dropped."""
    return num_tokens > max_tokens


def overlong_error(num_tokens: int, max_tokens: int) -> OverlongError:
    """The error for an overlong sample."""
    return OverlongError(f"{num_tokens} tokens, more than max_tokens {max_tokens}; dropped")


@dataclass(frozen=True, kw_only=True)
class Tokens:
    """A sample without its pixels: `input_ids` and `labels` [T], and the position map of the spliced sequence."""

    input_ids: list[int]
    labels: list[int]
    positions: PositionMap


@dataclass(frozen=True, kw_only=True)
class Example:
    """One tokenised sample.

    Attributes:
        input_ids, labels: int32 [T].
        pixel_values: float32 [3, image_size, image_size] of each image; empty without an image, and where the pixels
            were taken out.
        positions: the position map of the spliced sequence.
    """

    input_ids: NDArray[np.int32]
    labels: NDArray[np.int32]
    pixel_values: tuple[NDArray[np.float32], ...]
    positions: PositionMap


@dataclass(frozen=True, kw_only=True)
class ExampleBuilder:
    """Tokenizer, template and image processor of a checkpoint.

    Attributes:
        vision_tokens: P, tokens per image.
        max_tokens: maximum number of embedded tokens (text + vision) of a sample, or None.
    """

    tokenizer: LegacyLlamaTokenizer
    template: TemplateName
    image_processor: ImageProcessor
    vision_tokens: int
    max_tokens: int | None = None

    @property
    def fingerprint(self) -> dict[str, str]:
        """Everything that decides a sample's tokens and pixels, by name; teacher and student must agree on it."""
        return {
            "tokenizer": self.tokenizer.fingerprint,
            "template": template_fingerprint(self.template),
            "image_processor": self.image_processor.fingerprint,
            "vision_tokens": str(self.vision_tokens),
        }

    def tokenize(self, turns: Sequence[Turn], *, num_images: int) -> Tokens:
        """The tokens of a training example of any length; images are not needed.

        Raises:
            SampleError: unusable conversation.
        """
        tokens = tokenize_conversation(turns, template=self.template, num_images=num_images, tokenizer=self.tokenizer)
        return self._place(tokens.input_ids, tokens.labels)

    def build(self, turns: Sequence[Turn], files: Sequence[bytes]) -> Example:
        """The training example of a conversation.

        Args:
            files: bytes of each image file, in the order of their `<image>`.

        Raises:
            SampleError: unusable conversation or image. OverlongError: more than `max_tokens`.
        """
        return self._example(self.tokenize(turns, num_images=len(files)), files)

    def build_question(self, turns: Sequence[Turn], files: Sequence[bytes]) -> Example:
        """A prompt that ends where the answer begins (no labels), for generation; arguments as `build`."""
        input_ids = tokenize_question(turns, template=self.template, num_images=len(files), tokenizer=self.tokenizer)
        return self._example(self._place(input_ids, [IGNORE_LABEL] * len(input_ids)), files)

    def _place(self, input_ids: list[int], labels: list[int]) -> Tokens:
        positions = position_map(input_ids, labels, vision_tokens=self.vision_tokens)
        return Tokens(input_ids=input_ids, labels=labels, positions=positions)

    def _example(self, tokens: Tokens, files: Sequence[bytes]) -> Example:
        if self.max_tokens is not None and is_overlong(tokens.positions.length, self.max_tokens):
            raise overlong_error(tokens.positions.length, self.max_tokens)
        return Example(
            input_ids=np.asarray(tokens.input_ids, np.int32),
            labels=np.asarray(tokens.labels, np.int32),
            pixel_values=self._pixels(files),
            positions=tokens.positions,
        )

    def _pixels(self, files: Sequence[bytes]) -> tuple[NDArray[np.float32], ...]:
        pixels = []
        for number, file in enumerate(files):
            try:
                pixels.append(self.image_processor(file))
            except ImageError as error:
                if len(files) == 1:
                    raise
                raise ImageError(f"image {number + 1} of {len(files)}: {error}") from error
        return tuple(pixels)
