"""Ids and keys of all records of a store without a Python object for each."""

from collections.abc import Iterator, Sequence
from typing import overload

import numpy as np
from numpy.typing import NDArray


class IdTable(Sequence[str]):
    """Texts in one byte array; a text is decoded on request."""

    def __init__(self, data: NDArray[np.uint8], ends: NDArray[np.int64]) -> None:
        """Texts in UTF-8, concatenated, uint8 [bytes]; `ends` [n + 1] rises from 0."""
        self._data, self._ends = data, ends

    def __len__(self) -> int:
        return len(self._ends) - 1

    @overload
    def __getitem__(self, place: int) -> str: ...
    @overload
    def __getitem__(self, place: slice) -> list[str]: ...
    def __getitem__(self, place: int | slice) -> str | list[str]:
        if isinstance(place, slice):
            return [self[number] for number in range(*place.indices(len(self)))]
        start, stop = self._ends[range(len(self))[place]], self._ends[range(len(self))[place] + 1]
        return self._data[start:stop].tobytes().decode("utf-8", "surrogatepass")

    def __iter__(self) -> Iterator[str]:
        return (self[place] for place in range(len(self)))

    def find(self, text: str) -> list[int]:
        """Positions of a text, ascending."""
        wanted = np.frombuffer(text.encode("utf-8", "surrogatepass"), np.uint8)
        places = np.flatnonzero(np.diff(self._ends) == len(wanted))
        # byte by byte from the end, where numbered ids differ; each byte leaves fewer candidates
        for at in reversed(range(len(wanted))):
            places = places[self._data[self._ends[places] + at] == wanted[at]]
        return [int(place) for place in places]


class KeyTable(Sequence[str]):
    """Keys, stored as 32 bytes each and returned in hex."""

    def __init__(self, data: NDArray[np.uint8]) -> None:
        """uint8 [n, 32]."""
        self._data = data

    def __len__(self) -> int:
        return len(self._data)

    @overload
    def __getitem__(self, place: int) -> str: ...
    @overload
    def __getitem__(self, place: slice) -> list[str]: ...
    def __getitem__(self, place: int | slice) -> str | list[str]:
        if isinstance(place, slice):
            return [row.tobytes().hex() for row in self._data[place]]
        key: str = self._data[place].tobytes().hex()
        return key

    def __iter__(self) -> Iterator[str]:
        return (row.tobytes().hex() for row in self._data)

    @property
    def first_words(self) -> NDArray[np.uint64]:
        """The first 8 bytes of each key as a number, uint64 [n]: evenly distributed, as keys are hashes."""
        return np.ascontiguousarray(self._data[:, :8]).view(">u8").astype(np.uint64).reshape(len(self._data))

    @property
    def rows(self) -> NDArray[np.uint8]:
        """The keys as bytes, uint8 [n, 32]."""
        return self._data

    def find(self, key: str) -> list[int]:
        """Positions of a key, ascending."""
        try:
            wanted = np.frombuffer(bytes.fromhex(key), np.uint8)
        except ValueError:
            return []
        if len(wanted) != self._data.shape[1] or key != key.lower():
            return []
        places = np.arange(len(self._data))
        for at, byte in enumerate(wanted):
            places = places[self._data[places, at] == byte]
        return [int(place) for place in places]
