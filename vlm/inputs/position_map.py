"""Positions in the sequence that the decoder sees, vision tokens included; both phases use this module.

Shapes: T ids before vision tokens are inserted, L positions, k images, P vision tokens of all images, Q text queries
that can see every image, N supervised positions. All positions count from 0.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from alignkd.vlm.inputs.labels import IGNORE_LABEL, IMAGE_TOKEN_ID

Positions = NDArray[np.int32]
AttentionPairs = Literal["tqv", "tqt", "vqv"]


@dataclass(frozen=True, kw_only=True)
class PositionMap:
    """Positions of one sample.

    Attributes:
        length: L, text and vision tokens together.
        tokens_of_image: vision tokens of each of the k images.
        blocks_of_images: True where every image has the same number of tokens whatever its size. Attention to vision
            tokens then is one block of columns per image, else one block for all images.
        vision_positions: [P], image by image; need not be contiguous; [0] without an image.
        text_positions: [L - P] everything else.
        tqv_query_positions: [Q] text positions after the last vision token of the last image; [0] without an image.
        supervised_positions: [N] positions whose NEXT token has a label.
        next_labels: [N] those labels.
    """

    length: int
    tokens_of_image: tuple[int, ...]
    blocks_of_images: bool
    vision_positions: Positions
    text_positions: Positions
    tqv_query_positions: Positions
    supervised_positions: Positions
    next_labels: Positions

    @property
    def num_images(self) -> int:
        """k."""
        return len(self.tokens_of_image)

    def attention_rows(self, pairs: AttentionPairs) -> Positions:
        """Query positions [R] of an attention target; empty without an image."""
        if pairs == "vqv":
            return self.vision_positions
        return self.tqv_query_positions

    def attention_cols(self, pairs: AttentionPairs) -> Positions:
        """Key positions [C] of an attention target; empty without an image."""
        if not len(self.vision_positions):
            return self.vision_positions
        return self.text_positions if pairs == "tqt" else self.vision_positions

    def attention_blocks(self, pairs: AttentionPairs) -> list[tuple[Positions, Positions]]:
        """Rows and columns of each block of an attention target.

        With vision columns there is one block per image if `blocks_of_images`: all rows and the image's columns.
        Otherwise, and for `tqt`, there is one block. A sample without images has no block.
        """
        if not self.num_images:
            return []
        rows, cols = self.attention_rows(pairs), self.attention_cols(pairs)
        blocks = self.num_images if self.blocks_of_images and pairs != "tqt" else 1
        return [(rows, block) for block in np.split(cols, blocks)]


def position_map(input_ids: Sequence[int], labels: Sequence[int], *, vision_tokens: int) -> PositionMap:
    """The position map of a sample whose images are one id each, as MobileVLM's.

    Args:
        input_ids: [T] with `IMAGE_TOKEN_ID` where each image is.
        labels: [T] with `IGNORE_LABEL` where not supervised.
        vision_tokens: vision tokens per image.
    """
    is_image = np.asarray(input_ids) == IMAGE_TOKEN_ID
    repeats = np.where(is_image, vision_tokens, 1)
    is_vision = np.repeat(is_image, repeats)
    spliced = np.repeat(np.where(is_image, IGNORE_LABEL, np.asarray(labels)).astype(np.int32), repeats)
    images = (vision_tokens,) * int(np.count_nonzero(is_image))
    return _map(is_vision, spliced, images, blocks_of_images=True)


def spliced_position_map(
    is_vision: NDArray[np.bool_],
    labels: NDArray[np.int32],
    tokens_of_image: Sequence[int],
    *,
    blocks_of_images: bool,
) -> PositionMap:
    """The position map of a sample whose ids have one entry per position, vision tokens included.

    Args:
        is_vision: [L], True at vision tokens.
        labels: int32 [L], `IGNORE_LABEL` where not supervised and at vision tokens.
        tokens_of_image: vision tokens of each image; their sum is the number of True in `is_vision`.
        blocks_of_images: see `PositionMap`.
    """
    return _map(is_vision, labels, tuple(tokens_of_image), blocks_of_images=blocks_of_images)


def _map(
    is_vision: NDArray[np.bool_], labels: NDArray[np.int32], tokens_of_image: tuple[int, ...], *, blocks_of_images: bool
) -> PositionMap:
    vision, text = (np.flatnonzero(mask).astype(np.int32) for mask in (is_vision, ~is_vision))
    assert len(vision) == sum(tokens_of_image), (len(vision), tokens_of_image)
    supervised = np.flatnonzero(labels[1:] != IGNORE_LABEL).astype(np.int32)
    return PositionMap(
        length=len(labels),
        tokens_of_image=tokens_of_image,
        blocks_of_images=blocks_of_images,
        vision_positions=vision,
        text_positions=text,
        tqv_query_positions=text[text > vision[-1]] if len(vision) else vision,
        supervised_positions=supervised,
        next_labels=labels[supervised + 1],
    )
