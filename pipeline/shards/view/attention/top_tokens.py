"""The vision tokens with the most attention."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def top_tokens(values: NDArray[np.float32], count: int) -> list[int]:
    """Numbers of the `count` largest values [P], largest first; of equal ones the earlier first."""
    return [int(token) for token in np.argsort(-values, kind="stable")[:count]]


def top_cells(maps: Sequence[NDArray[np.float32]], count: int) -> list[list[tuple[int, int]]]:
    """Row and column of the `count` largest values of all maps [rows, columns] together, map by map."""
    ends = np.cumsum([shown.size for shown in maps])
    cells: list[list[tuple[int, int]]] = [[] for _ in maps]
    for token in top_tokens(np.concatenate([shown.ravel() for shown in maps]), count):
        image = int(np.searchsorted(ends, token, side="right"))
        row, column = divmod(token - int(ends[image]) + maps[image].size, maps[image].shape[1])
        cells[image].append((row, column))
    return cells
