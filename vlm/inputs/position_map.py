"""Positions in the sequence after the vision tokens are spliced in; both phases use this module.

Shapes: T ids before splicing, L positions after splicing, k images, P vision tokens of each, Q text queries that can
see every image, N supervised positions. All positions count from 0 in the spliced sequence.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from alignkd.vlm.inputs.templates import IGNORE_LABEL, IMAGE_TOKEN_ID

Positions = NDArray[np.int32]
AttentionPairs = Literal["tqv", "tqt", "vqv"]


@dataclass(frozen=True, kw_only=True)
class PositionMap:
    """Positions of one sample in the spliced sequence.

    Attributes:
        length: L, text and vision tokens together.
        num_images: k.
        vision_positions: [k * P], image by image; [0] without an image.
        text_positions: [L - k * P] everything else.
        tqv_query_positions: [Q] text positions after the last vision token of the last image; [0] without an image.
        supervised_positions: [N] positions whose NEXT token has a label.
        next_labels: [N] those labels.
    """

    length: int
    num_images: int
    vision_positions: Positions
    text_positions: Positions
    tqv_query_positions: Positions
    supervised_positions: Positions
    next_labels: Positions

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

        With vision columns there is one block per image: all rows and the image's P columns. `tqt` has one block. A
        sample without images has no block.
        """
        if not self.num_images:
            return []
        rows, cols = self.attention_rows(pairs), self.attention_cols(pairs)
        return [(rows, block) for block in np.split(cols, 1 if pairs == "tqt" else self.num_images)]


def position_map(input_ids: Sequence[int], labels: Sequence[int], *, vision_tokens: int) -> PositionMap:
    """The position map of one sample.

    Args:
        input_ids: [T] with `IMAGE_TOKEN_ID` where each image is.
        labels: [T] with `IGNORE_LABEL` where not supervised.
        vision_tokens: P, vision tokens per image.
    """
    is_image = np.asarray(input_ids) == IMAGE_TOKEN_ID
    repeats = np.where(is_image, vision_tokens, 1)
    is_vision = np.repeat(is_image, repeats)
    spliced = np.repeat(np.where(is_image, IGNORE_LABEL, np.asarray(labels)).astype(np.int32), repeats)
    vision, text = (np.flatnonzero(mask).astype(np.int32) for mask in (is_vision, ~is_vision))
    supervised = np.flatnonzero(spliced[1:] != IGNORE_LABEL).astype(np.int32)
    return PositionMap(
        length=len(spliced),
        num_images=int(np.count_nonzero(is_image)),
        vision_positions=vision,
        text_positions=text,
        tqv_query_positions=text[text > vision[-1]] if len(vision) else vision,
        supervised_positions=supervised,
        next_labels=spliced[supervised + 1],
    )
