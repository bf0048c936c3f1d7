"""Which row of the imported files belongs to which sample: by id, by order, or by its tokens."""

import hashlib
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from alignkd.teacher_dump.imported.formats.registry import Match
from alignkd.teacher_dump.imported.places import known_forms
from alignkd.teacher_dump.imported.row import ForeignRow
from alignkd.vlm.data.sample import Sample
from alignkd.vlm.errors import InputError, SampleError
from alignkd.vlm.inputs.examples import Tokens


class RowNumbers:
    """Collects what identifies each row, and finds the row of a sample."""

    def __init__(self, given: Match | None, *, has_no_order: bool) -> None:
        """`given`: how rows are found; None: by tokens if the format has no order, by id if every row has one, else by
        order."""
        self._given, self._has_no_order = given, has_no_order
        self._by_id: dict[str, int] = {}
        self._by_tokens: dict[bytes, int] = {}
        self._repeated: str | None = None
        self._without_id: str | None = None
        self.count = 0

    def add(self, row: ForeignRow) -> None:
        """Add the next row."""
        if row.id is None:
            self._without_id = self._without_id or row.where
        elif row.id in self._by_id:
            self._repeated = self._repeated or row.id
        else:
            self._by_id[row.id] = self.count
        if row.tokens is not None and self.match == "tokens":
            for length in row.lengths:
                self._by_tokens.setdefault(_digest(row.tokens[:length]), self.count)
        self.count += 1

    @property
    def match(self) -> Match:
        """How rows are found."""
        if self._given is not None:
            return self._given
        if self._has_no_order:
            return "tokens"
        return "id" if self._without_id is None else "order"

    @property
    def ids(self) -> Mapping[str, int]:
        """Id -> number of its row."""
        return self._by_id

    def check(self, num_samples: int, data: object) -> None:
        """Refuse files whose rows cannot be told apart.

        Raises:
            InputError: repeated or missing ids, or another number of rows than of samples.
        """
        if self.match == "id" and self._without_id is not None:
            raise InputError(f"{self._without_id}: has no id; give --match order if the rows are in the data's order")
        if self.match == "id" and self._repeated is not None:
            raise InputError(
                f"two rows have the id {self._repeated!r}; give --match order if the rows are in the data's order"
            )
        if self.match == "order" and self.count != num_samples:
            raise InputError(
                f"the imported files have {self.count} rows without ids, {data} has {num_samples} samples, so the "
                "order does not determine which belong together; write each sample's id into the files"
            )

    def find(self, sample: Sample, tokens: Tokens) -> int:
        """The number of a sample's row.

        Raises:
            SampleError: there is none.
        """
        if self.match == "order":
            return sample.index
        if self.match == "id":
            if (found := self._by_id.get(sample.id)) is None:
                raise SampleError("no row of the imported files has its id")
            return found
        for form in known_forms(tokens):
            if (found := self._by_tokens.get(_digest(form))) is not None:
                return found
        raise SampleError("no row of the imported files has its tokens (rows that several samples share are not read)")


def _digest(tokens: NDArray[np.int64]) -> bytes:
    return hashlib.blake2b(tokens.astype("<i8").tobytes(), digest_size=16).digest()
