"""The tokens of a record in their order, with their positions and roles."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from alignkd.pipeline.browse.records.predictions import Prediction
from alignkd.pipeline.shards.view.attention.grids import vision_blocks
from alignkd.pipeline.shards.view.pieces import Pieces
from alignkd.storage.record.record import IGNORE_LABEL, IMAGE_TOKEN_ID, Record

Role = Literal["image", "answer", "text"]


@dataclass(frozen=True, kw_only=True)
class Token:
    """One token, or the vision tokens of an image that stand in a row.

    Attributes:
        number: number of its id among the input ids.
        id: its id.
        count: positions that it takes; 1 for text.
        piece: its text, with a mark for a leading blank.
        position: its position, with the vision tokens counted; of several the first.
        role: `image`, `answer` where it is supervised, else `text`.
        image: number of the image; None for text.
        supervised: whether the losses on logits learn it.
        is_query: whether it is a text query, whose attention to the vision tokens can be shown.
        prediction: the teacher's distribution of this token, from the position before it; None where there is none.
    """

    number: int
    id: int
    count: int
    piece: str
    position: int
    role: Role
    image: int | None
    supervised: bool
    is_query: bool
    prediction: Prediction | None


def tokens_of(record: Record, pieces: Pieces, predictions: Sequence[Prediction]) -> list[Token]:
    """The tokens of a record.

    Args:
        predictions: one for each supervised position, or none.
    """
    positions = positions_of(record).tolist()
    image_at = {position: n for n, block in enumerate(vision_blocks(record)) for position in block.tolist()}
    supervised = np.flatnonzero(record.labels[1:] != IGNORE_LABEL) + 1
    found = dict(zip(supervised.tolist(), predictions, strict=True)) if predictions else {}
    learnt, queries = set(supervised.tolist()), set(record.tqv_query_positions.tolist())
    tokens: list[Token] = []
    for number, (token, position) in enumerate(zip(record.input_ids.tolist(), positions, strict=True)):
        image = image_at.get(position)
        if image is not None and _continues(tokens, image, position):
            tokens[-1] = _longer(tokens[-1])
            continue
        tokens.append(
            Token(
                number=number,
                id=token,
                count=record.tokens_of_image[image] if image is not None and token == IMAGE_TOKEN_ID else 1,
                piece=pieces(token),
                position=position,
                role="image" if image is not None else "answer" if number in learnt else "text",
                image=image,
                supervised=number in learnt,
                is_query=position in queries,
                prediction=found.get(number),
            )
        )
    return tokens


def positions_of(record: Record) -> NDArray[np.int64]:
    """The position of each input id, int64 [T]; of the id that stands for all vision tokens of an image the first."""
    counts = np.ones(len(record.input_ids), np.int64)
    marks = np.flatnonzero(record.input_ids == IMAGE_TOKEN_ID)
    counts[marks] = record.tokens_of_image[: len(marks)]
    return np.cumsum(counts) - counts


def _continues(tokens: Sequence[Token], image: int, position: int) -> bool:
    return bool(tokens) and tokens[-1].image == image and tokens[-1].position + tokens[-1].count == position


def _longer(token: Token) -> Token:
    fields = {**vars(token), "count": token.count + 1}
    return Token(**fields)
