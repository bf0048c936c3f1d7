"""The columns of all samples in memory. Rows are the records in the order of the reader, then the unusable samples."""

import re
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from alignkd.pipeline.browse.index.columns import figure_names
from alignkd.pipeline.browse.index.shard_rows import CHEAP
from alignkd.storage.read.store import StoreReader
from alignkd.storage.schema.commit_record import Quarantined
from alignkd.storage.tools.stats import general_reason

T = TypeVar("T")
Mask = NDArray[np.bool_]
Rows = NDArray[np.int64]
Numbers = NDArray[np.float64]
# columns, orders and results of searches that are kept
MAX_CACHED = 128
# between two ids; UTF-8 does not contain this byte
_BETWEEN = b"\xff"


@dataclass(frozen=True, eq=False)
class IdBlock:
    """The ids of consecutive rows."""

    data: bytes
    ends: NDArray[np.int64]

    @classmethod
    def of(cls, ids: Sequence[bytes]) -> "IdBlock":
        lengths = [len(one) + 1 for one in ids]
        return cls(b"".join(one + _BETWEEN for one in ids), np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64))

    @classmethod
    def of_stored(cls, data: bytes) -> "IdBlock":
        """The block whose `data` was stored.

        Raises:
            UnicodeDecodeError: an id is not UTF-8.
        """
        data.replace(_BETWEEN, b"").decode("utf-8", "surrogatepass")
        ends = np.flatnonzero(np.frombuffer(data, np.uint8) == _BETWEEN[0]) + 1
        return cls(data, np.concatenate([[0], ends]).astype(np.int64))

    def __len__(self) -> int:
        return len(self.ends) - 1

    def text(self, number: int) -> str:
        return self.data[self.ends[number] : self.ends[number + 1] - 1].decode("utf-8", "surrogatepass")

    def find(self, part: bytes) -> Rows:
        """Numbers of the ids that contain `part`, without regard to the case of ASCII letters."""
        starts = [found.start() for found in re.finditer(re.escape(part), self.data, re.IGNORECASE)]
        return np.unique(np.searchsorted(self.ends, np.array(starts, np.int64), side="right") - 1)


class Table:
    """All columns; shards are filled in one after the other, by any thread.

    Attributes:
        num_records, num_rows: records, and records with unusable samples.
        version: changes whenever values were added.
        lock: held while values are added, and while a consistent state is read.
    """

    def __init__(self, reader: StoreReader) -> None:
        self.manifest, self.starts = reader.manifest, reader.starts
        self.unusable: list[Quarantined] = reader.quarantined
        self.num_records, self.num_rows = len(reader), len(reader) + len(self.unusable)
        self.sources = reader.sources
        self.version, self.lock = 0, threading.RLock()
        shards = reader.commits.shards
        held = np.diff(self.starts)
        planned = np.array([reader.manifest.planned_size(int(shard)) for shard in shards], np.int64)
        self._columns: dict[str, NDArray[Any]] = {name: self._empty(dtype) for name, dtype in CHEAP.items()}
        self._columns |= {name: self._empty(np.dtype("<f8")) for name in figure_names(reader.manifest)}
        self._columns["position"] = np.where(np.arange(self.num_rows) < self.num_records, np.arange(self.num_rows), -1)
        self._columns["shard"] = np.concatenate([np.repeat(shards, held), np.repeat(shards, planned - held)])
        self._columns["index"][self.num_records :] = [sample.index for sample in self.unusable]
        self.keys = np.zeros((self.num_records, 32), np.uint8)
        # by the place of a shard among those of the reader, last the unusable samples
        self._ids: list[IdBlock | None] = [None] * len(shards)
        self._ids.append(IdBlock.of([_utf8(sample.id) for sample in self.unusable]))
        self.is_indexed: Mask = np.arange(self.num_rows) >= self.num_records
        # places of the shards whose figures were read
        self._figured: dict[str, set[int]] = {name: set() for name in figure_names(reader.manifest)}
        self._cache: OrderedDict[str, Any] = OrderedDict()

    def place_rows(self, place: int) -> slice:
        """The rows of a shard, by its place among those of the reader."""
        return slice(self.starts[place], self.starts[place + 1])

    def add_shard(self, place: int, values: Mapping[str, NDArray[Any]], keys: NDArray[np.uint8], ids: IdBlock) -> None:
        """Add the columns of the first pass."""
        rows = self.place_rows(place)
        with self.lock:
            for name in CHEAP:
                self._columns[name][rows] = values[name]
            self.keys[rows] = keys
            self._ids[place] = ids
            self.is_indexed[rows] = True
            self.changed()

    def add_figures(self, place: int, values: Mapping[str, Numbers]) -> None:
        """Add columns of the second pass."""
        rows = self.place_rows(place)
        with self.lock:
            for name, found in values.items():
                self._columns[name][rows] = found
                self._figured[name].add(place)
            self.changed()

    @property
    def num_indexed(self) -> int:
        """Records of the first pass."""
        return int(np.count_nonzero(self.is_indexed[: self.num_records]))

    @property
    def num_figured(self) -> int:
        """Records all of whose figures were read."""
        sizes = np.diff(self.starts)
        counts = (int(sizes[sorted(places)].sum()) for places in self._figured.values())
        return min(counts, default=self.num_indexed)

    def column(self, name: str) -> Numbers:
        """A column of numbers, float64 [rows], NaN without a value; do not change it.

        Raises:
            KeyError: there is no such column, or it holds texts.
        """
        return self.cached(f"column {name}", lambda: self._column(name))

    def id_of(self, row: int) -> str:
        """The id of one row."""
        place, number = self._id_place(row)
        block = self._ids[place]
        return "" if block is None else block.text(number)

    def rows_with_id(self, part: str) -> Mask:
        """Rows whose id contains a text, without regard to the case of ASCII letters."""
        wanted = _utf8(part)

        def find() -> Mask:
            found = np.zeros(self.num_rows, np.bool_)
            for place, block in enumerate(self._ids):
                if block is not None:
                    start = self.starts[place] if place < len(self._ids) - 1 else self.num_records
                    found[start + block.find(wanted)] = True
            return found

        return self.cached(f"id {part}", find)

    @property
    def source_numbers(self) -> Rows:
        """Data set of each row as a position in `sources`, int64 [rows]."""

        def find() -> Rows:
            ends = np.cumsum([source.num_samples for source in self.manifest.all_sources()])
            found = np.searchsorted(ends, self._columns["index"], side="right").astype(np.int64)
            return np.minimum(found, len(self.sources) - 1)

        return self.cached("sources", find)

    @cached_property
    def reason_groups(self) -> list[str]:
        """`general_reason` of each unusable sample."""
        return [general_reason(sample.reason) for sample in self.unusable]

    def order(self, name: str, *, is_text: bool, descending: bool) -> Rows:
        """All rows sorted by a column, those without a value last; equal values in the order of the rows."""

        def sort() -> Rows:
            if is_text:
                return _sorted_texts(self._texts(name), descending=descending)
            values = self.column(name)
            return np.argsort(-values if descending else values, kind="stable")  # NaN is sorted last

        return self.cached(f"order {name} {descending}", sort)

    def changed(self) -> None:
        """Forget what was computed from earlier values."""
        with self.lock:
            self.version += 1
            self._cache.clear()

    def cached(self, name: str, make: Callable[[], T]) -> T:
        """What `make` gives, kept by this name until values are added or many other results were kept."""
        with self.lock:
            if name not in self._cache:
                self._cache[name] = make()
                while len(self._cache) > MAX_CACHED:
                    self._cache.popitem(last=False)
            self._cache.move_to_end(name)
            found: T = self._cache[name]
            return found

    def _texts(self, name: str) -> Sequence[bytes | None]:
        """A column of texts in UTF-8, whose bytes have the order of the letters."""
        if name == "id":
            return self._all_ids()
        if name == "key":
            data = self.keys.tobytes()
            keys = [data[start : start + 32] for start in range(0, len(data), 32)]
            return [*_where(self.is_indexed[: self.num_records], keys), *[None] * len(self.unusable)]
        if name == "source":
            names = [_utf8(source) for source in self.sources]
            return _where(self.is_indexed, [names[number] for number in self.source_numbers.tolist()])
        return [*[None] * self.num_records, *(_utf8(sample.reason) for sample in self.unusable)]

    def _column(self, name: str) -> Numbers:
        unusable = np.arange(self.num_rows) >= self.num_records
        if name == "unusable":
            return np.where(self.is_indexed, unusable.astype(np.float64), np.nan)
        if name == "copies":
            words = self.keys[:, :8].copy().view("<i8").reshape(-1) if self.num_records else np.zeros(0, np.int64)
            return self._counts(words, self.is_indexed[: self.num_records])
        if name == "same_answer":
            answers = self._columns["answer"][: self.num_records]
            return self._counts(answers, self.is_indexed[: self.num_records] & (answers != 0))
        if name in CHEAP and name != "answer":
            known = self.is_indexed if name == "index" else self.is_indexed & ~unusable
        elif name in ("position", "shard"):
            known = self.is_indexed & ~unusable if name == "position" else self.is_indexed
        elif name in self._figured:
            return self._columns[name].copy()
        else:
            raise KeyError(name)
        return np.where(known, self._columns[name].astype(np.float64), np.nan)

    def _counts(self, numbers: Rows, known: Mask) -> Numbers:
        """How often each number occurs, NaN where it is not known; float64 [rows]."""
        found = np.full(self.num_rows, np.nan)
        _, inverse, counts = np.unique(numbers[known], return_inverse=True, return_counts=True)
        found[np.flatnonzero(known)] = counts[inverse]
        return found

    def _all_ids(self) -> list[bytes | None]:
        ids: list[bytes | None] = []
        for place, block in enumerate(self._ids):
            if block is None:
                ids += [None] * (self.starts[place + 1] - self.starts[place])
            else:
                ids += block.data.split(_BETWEEN)[:-1]
        return ids

    def _id_place(self, row: int) -> tuple[int, int]:
        if row >= self.num_records:
            return len(self._ids) - 1, row - self.num_records
        place = int(np.searchsorted(self.starts, row, side="right")) - 1
        return place, row - self.starts[place]

    def _empty(self, dtype: np.dtype[Any]) -> NDArray[Any]:
        return np.full(self.num_rows, np.nan if dtype.kind == "f" else 0, dtype)


def _sorted_texts(texts: Sequence[bytes | None], *, descending: bool) -> Rows:
    known = [row for row, text in enumerate(texts) if text is not None]
    known.sort(key=texts.__getitem__, reverse=descending)  # type: ignore[arg-type]  # without None
    return np.array(known + [row for row, text in enumerate(texts) if text is None], np.int64)


def _where(known: Mask, texts: Sequence[bytes]) -> list[bytes | None]:
    """The texts, None where a row is not known."""
    return [text if is_known else None for text, is_known in zip(texts, known.tolist(), strict=True)]


def _utf8(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")
