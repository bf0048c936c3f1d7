"""What is open while the server runs: one or two stores with their indexes, the folder of images, a student."""

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePath
from typing import Any

from alignkd.pipeline.browse.index.changes import store_marks
from alignkd.pipeline.browse.index.dump_state import DumpState, DumpWatch
from alignkd.pipeline.browse.index.store_index import StoreIndex, open_index
from alignkd.pipeline.browse.records.views import RecordViews
from alignkd.pipeline.browse.web.asking import Asked, BadRequestError
from alignkd.storage.errors import StoreError
from alignkd.storage.read.store import StoreReader
from alignkd.storage.schema.commit_record import committed_shards

# how often a store that is not complete is looked at for new shards
SECONDS_BETWEEN_LOOKS = 5.0


class OpenedStore:
    """A store and its index; both are opened again when a dump has committed more shards, or has done some again.

    Attributes:
        location: folder or URL.
        name: last part of the location.
        views: its records for pages.
    """

    def __init__(self, location: Path | str, **options: Any) -> None:
        """`options` are those of `RecordViews`.

        Raises:
            StoreError, CorruptStoreError: as `StoreReader`.
            InputError: as `RecordViews`.
        """
        self.location, self.name, self._options = location, PurePath(location).name or str(location), options
        self.views = self._opened()
        self._index: StoreIndex | None = None
        self._lock = threading.Lock()
        self._watch, self._watch_lock = DumpWatch(location), threading.Lock()
        self._looked = time.monotonic()

    def _opened(self) -> RecordViews:
        # before the store is read, so that no later change is missed
        marks = store_marks(self.location) if isinstance(self.location, Path) else None
        views = RecordViews(StoreReader(self.location, allow_incomplete=True), **self._options)
        self._marks = marks
        return views

    @property
    def reader(self) -> StoreReader:
        """The store; another one after `look_for_more` has found more."""
        return self.views.reader

    @property
    def index(self) -> StoreIndex:
        """The index; its making starts at the first call and goes on in the background."""
        with self._lock:
            if self._index is None:
                self._index = open_index(self.reader)
            return self._index

    @property
    def is_complete(self) -> bool:
        """Whether every shard of the plan is committed."""
        return len(self.reader.commits) >= self.reader.manifest.num_shards

    def look_for_more(self) -> None:
        """Open the store again if shards were committed, or it was replaced; at most every `SECONDS_BETWEEN_LOOKS`.

        A complete store may grow later, and shards may be done again. A remote one is not listed again and again for
        this.

        Raises:
            StoreError, CorruptStoreError: it is not there any more, or cannot be read.
        """
        with self._lock:
            if self.is_complete and not isinstance(self.location, Path):
                return
            if time.monotonic() - self._looked < SECONDS_BETWEEN_LOOKS:
                return
            self._looked = time.monotonic()
            if not self._has_changed():
                return
            self.views = self._opened()
            closed, self._index = self._index, None
        if closed is not None:
            closed.close()

    def _has_changed(self) -> bool:
        if isinstance(self.location, Path):
            return store_marks(self.location) != self._marks
        return len(committed_shards(self.reader.files)) != len(self.reader.commits)

    def dump_state(self) -> DumpState:
        """The state of the dump into the store.

        Raises:
            StoreError: the store cannot be read any more.
        """
        with self._watch_lock:
            return self._watch.state()

    def position(self, position: int, key: str) -> int:
        """`position`, or where the record with the key `key` is now: positions move while a dump runs.

        Raises:
            StoreError: no record with this key.
        """
        reader = self.reader
        if not key or (0 <= position < len(reader) and reader.keys[position] == key):
            return position
        if not (found := reader.find(key=key)):
            raise StoreError(f"store {self.location}: no record with key {key[:64]!r}; go back to the list")
        return found[0]

    def close(self) -> None:
        """Stop the making of the index."""
        with self._lock:
            if self._index is not None:
                self._index.close()


class Browser:
    """Everything that the pages show.

    Attributes:
        stores: the store, and perhaps another to compare it with.
    """

    def __init__(self, stores: Sequence[OpenedStore]) -> None:
        self.stores = list(stores)

    @classmethod
    @contextmanager
    def open(cls, locations: Sequence[Path | str], **options: Any) -> Iterator["Browser"]:
        """Open stores for the time of a block; `options` are those of `RecordViews`.

        Raises:
            StoreError, CorruptStoreError: a store cannot be read.
            InputError: as `RecordViews`.
        """
        browser = cls([OpenedStore(location, **options) for location in locations])
        try:
            yield browser
        finally:
            for store in browser.stores:
                store.close()

    def store(self, asked: Asked) -> OpenedStore:
        """The store that a request names by its number; the first if it names none.

        Raises:
            BadRequestError: there is no such store.
        """
        number = asked.number("store", 0)
        if number >= len(self.stores):
            raise BadRequestError(f"store is {number}, open are {len(self.stores)}; give a second store to the command")
        return self.stores[number]

    @property
    def has_student(self) -> bool:
        """Whether there is a student to compare with the teacher."""
        return self.stores[0].views.has_student
