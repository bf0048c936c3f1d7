"""The grid of an image's vision tokens. A store has their number and their positions, not their grid."""

import math
from collections.abc import Iterator

import numpy as np

from alignkd.storage.record.record import Record
from alignkd.storage.schema.manifest import Manifest

Grid = tuple[int, int]
# a grid fits if its proportions are the image's within this factor
CLOSE = 1.3


def square_grid(tokens: int) -> Grid:
    """Rows and columns of the vision tokens: a square, or the flattest rectangle that they fill."""
    rows = next(side for side in range(math.isqrt(tokens), 0, -1) if tokens % side == 0)
    return rows, tokens // rows


def token_grids(record: Record, manifest: Manifest, sizes: list[tuple[int, int]] | None = None) -> list[Grid]:
    """Rows and columns of each image's vision tokens; one row where no grid is known.

    Where every image has the same number of tokens, it is a square. Otherwise separators between the tokens (a text
    token after every row) show the grid, or it is the rectangle whose proportions are the image's. A tower that sees a
    square whatever the image gives a square.

    Args:
        sizes: width and height of each image in pixels; None if the images are not there.
    """
    tokens = record.tokens_of_image
    if manifest.shapes.vision_tokens is not None:
        return [square_grid(count) for count in tokens]
    if sizes is None:
        return [found if (found := _of_separators(record, n)) else square_grid(tokens[n]) for n in range(len(tokens))]
    return [_fitting(record, n, width / height) for n, (width, height) in enumerate(sizes)]


def _fitting(record: Record, image: int, proportion: float) -> Grid:
    tokens, separated = record.tokens_of_image[image], _of_separators(record, image)
    if separated is not None and _distance(separated, proportion) <= math.log(CLOSE):
        return separated
    best = min(_rectangles(tokens), key=lambda grid: _distance(grid, proportion))
    if _distance(best, proportion) <= math.log(CLOSE):
        return best
    side = math.isqrt(tokens)
    return (side, side) if side * side == tokens else (1, tokens)


def _of_separators(record: Record, image: int) -> Grid | None:
    """The grid of tokens that stand in runs of equal length; None for one run, or for other lengths."""
    positions = vision_blocks(record)[image]
    lengths = {len(run) for run in np.split(positions, np.flatnonzero(np.diff(positions) > 1) + 1)}
    if len(lengths) > 1 or len(positions) in lengths:
        return None
    columns = lengths.pop()
    return len(positions) // columns, columns


def _rectangles(tokens: int) -> Iterator[Grid]:
    return ((rows, tokens // rows) for rows in range(1, tokens + 1) if tokens % rows == 0)


def _distance(grid: Grid, proportion: float) -> float:
    return abs(math.log(grid[1] / grid[0] / proportion))


def vision_blocks(record: Record) -> list[np.ndarray[tuple[int], np.dtype[np.int32]]]:
    """The vision positions of each image."""
    ends = np.cumsum(record.tokens_of_image[:-1], dtype=np.int64)
    return np.split(record.vision_positions, ends) if record.has_image else []
