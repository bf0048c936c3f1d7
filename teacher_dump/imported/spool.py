"""The rows of all files in a temporary file, from which any row is read at once.

A store writes its samples in an order of its own, and other tools' files can only be read quickly from front to back.
The temporary file has no name, so the system removes it however the process ends.
"""

import json
import tempfile
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import IO, Any, Self

import numpy as np
from numpy.typing import NDArray

from alignkd.teacher_dump.imported.row import ForeignRow

_ARRAYS = {"predicts": "<i8", "ids": "<u4", "logprobs": "<f4", "offsets": "<i8", "tokens": "<i8"}


class RowSpool:
    """A context manager; rows are added once and read by number.

    It takes 8 bytes per entry in the folder for temporary files (`TMPDIR`).

    Attributes:
        widest: the largest number of entries of a distribution.
    """

    def __init__(self) -> None:
        self._file: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - closed by __exit__
        self._starts: list[int] = []
        self._end = 0
        self.widest = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def __len__(self) -> int:
        return len(self._starts)

    def add_all(self, rows: Iterable[ForeignRow], added: Callable[[ForeignRow], object]) -> None:
        """Add rows; `added` is called with each.

        Raises:
            OSError: the temporary file cannot grow.
        """
        for row in rows:
            self._add(row)
            added(row)

    def __getitem__(self, number: int) -> ForeignRow:
        self._file.seek(self._starts[number])
        head = json.loads(self._file.readline())
        sizes = head.pop("sizes")
        arrays = {name: self._array(_ARRAYS[name], size) for name, size in sizes.items() if size is not None}
        arrays["ids"] = arrays["ids"].astype(np.int64)
        fields: dict[str, Any] = {**head, "lengths": tuple(head["lengths"]), **arrays}
        return ForeignRow(**fields)

    def _add(self, row: ForeignRow) -> None:
        values: dict[str, Any] = {name: getattr(row, name) for name in _ARRAYS}
        head = {
            **{name: getattr(row, name) for name in ("where", "id", "num_tokens", "lengths", "from_end", "problem")},
            "sizes": {name: None if array is None else len(array) for name, array in values.items()},
        }
        data = json.dumps(head).encode() + b"\n"
        data += b"".join(
            values[name].astype(dtype).tobytes() for name, dtype in _ARRAYS.items() if values[name] is not None
        )
        self._file.seek(self._end)
        self._file.write(data)
        self._starts.append(self._end)
        self._end += len(data)
        self.widest = max(self.widest, int(np.diff(row.offsets).max(initial=0)))

    def _array(self, dtype: str, size: int) -> NDArray[Any]:
        kind = np.dtype(dtype)
        return np.frombuffer(self._file.read(kind.itemsize * size), kind)
