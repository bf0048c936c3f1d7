"""Where everything is once the vision tokens are spliced in: the one answer both phases use.

Shapes: T ids before splicing, L positions after splicing, P vision tokens, Q text queries that can see the image,
N supervised positions. All positions count from 0 in the spliced sequence.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from vlm.errors import SampleError
from vlm.templates import IGNORE_LABEL, IMAGE_TOKEN_ID

Positions = NDArray[np.int32]
AttentionPairs = Literal["tqv", "tqt", "vqv"]


@dataclass(frozen=True, kw_only=True)
class PositionMap:
    """Positions of one sample in the spliced sequence.

    Attributes:
        length: L, text and vision tokens together.
        vision_positions: [P] or [0] without an image.
        text_positions: [L - P] everything else.
        tqv_query_positions: [Q] text positions after the last vision token; [0] without an image.
        supervised_positions: [N] positions whose NEXT token has a label.
        next_labels: [N] those labels.
    """

    length: int
    vision_positions: Positions
    text_positions: Positions
    tqv_query_positions: Positions
    supervised_positions: Positions
    next_labels: Positions

    def attention_rows(self, pairs: AttentionPairs) -> Positions:
        """Query positions [R] of an attention target; none without an image."""
        if pairs == "vqv":
            return self.vision_positions
        return self.tqv_query_positions

    def attention_cols(self, pairs: AttentionPairs) -> Positions:
        """Key positions [C] of an attention target; none without an image."""
        if not len(self.vision_positions):
            return self.vision_positions
        return self.text_positions if pairs == "tqt" else self.vision_positions


def position_map(input_ids: Sequence[int], labels: Sequence[int], *, vision_tokens: int) -> PositionMap:
    """The position map of one sample.

    Args:
        input_ids: [T] with `IMAGE_TOKEN_ID` where the image is.
        labels: [T] with `IGNORE_LABEL` where not supervised.
        vision_tokens: P, vision tokens that one image becomes.

    Raises:
        SampleError: more than one image.
    """
    ids = np.asarray(input_ids)
    where = np.flatnonzero(ids == IMAGE_TOKEN_ID)
    if len(where) > 1:
        raise SampleError(f"{len(where)} images in one sample; one is supported")
    spliced = splice(np.asarray(labels, dtype=np.int32), where, IGNORE_LABEL, vision_tokens)
    length = len(spliced)
    start = int(where[0]) if len(where) else length
    vision = np.arange(start, min(start + vision_tokens, length), dtype=np.int32)
    text = np.concatenate([np.arange(start, dtype=np.int32), np.arange(start + len(vision), length, dtype=np.int32)])
    supervised = np.flatnonzero(spliced[1:] != IGNORE_LABEL).astype(np.int32)
    return PositionMap(
        length=length,
        vision_positions=vision,
        text_positions=text,
        tqv_query_positions=text[text > vision[-1]] if len(vision) else vision,
        supervised_positions=supervised,
        next_labels=spliced[supervised + 1],
    )


def splice(values: Positions, where: NDArray[np.int64], fill: int, vision_tokens: int) -> Positions:
    """`values` [T] with the entry of the image replaced by `vision_tokens` entries of `fill`: [L]."""
    if not len(where):
        return values
    at = int(where[0])
    return np.concatenate([values[:at], np.full(vision_tokens, fill, values.dtype), values[at + 1 :]])
