"""The shards that a reader keeps in memory: tables of many, files of few.

A globally shuffled reader comes back to a shard after all others: opening it anew would parse its descriptions and
indices for every record. Tables are kept for as many shards as a bound in bytes allows, descriptors for those used
last, and the small columns of those that are read most.
"""

import contextlib
from collections import OrderedDict
from collections.abc import Callable

from storage.open_shard import OpenShard

# tables and indices of all shards in memory, closed ones among them
TABLE_BYTES = 64 << 20
# small columns of all open shards together, and of one
HELD_BYTES = 64 << 20
HELD_BYTES_PER_SHARD = 8 << 20


class ShardCache:
    """Shards by place, least recently used first; threads may share it."""

    def __init__(self, max_open: int) -> None:
        """`max_open`: shards that may have open files."""
        self._max_open = max_open
        self._known: OrderedDict[int, OpenShard] = OrderedDict()
        self._open: OrderedDict[int, OpenShard] = OrderedDict()
        self._table_bytes = 0

    def get(self, place: int, open_shard: Callable[[int], OpenShard]) -> OpenShard:
        """The shard at a place, opened by `open_shard` if it is not known; `done` must follow once it has been read."""
        shard = self._known.pop(place, None)
        if shard is None:
            shard = open_shard(place)
            self._table_bytes += shard.num_bytes
        self._known[place] = shard
        self._open.pop(place, None)
        self._open[place] = shard
        with contextlib.suppress(KeyError):  # another thread took the last one
            while len(self._open) > self._max_open:
                self._open.popitem(last=False)[1].release()
            while self._table_bytes > TABLE_BYTES and len(self._known) > 1:
                self.drop(next(iter(list(self._known))))
        return shard

    def done(self, place: int, shard: OpenShard) -> None:
        """A record was read: hold small columns of a shard that is read often."""
        if self._open.get(place) is not shard:
            # another thread released it meanwhile, and the reading may have opened files again
            shard.release()
        elif shard.is_busy:
            shard.hold(HELD_BYTES_PER_SHARD)
            self._bound_held()

    def drop(self, place: int) -> None:
        """Forget a shard; its files close with the last reference."""
        self._open.pop(place, None)
        shard = self._known.pop(place, None)
        if shard is not None:
            self._table_bytes -= shard.num_bytes

    def _bound_held(self) -> None:
        total = 0
        for shard in reversed(list(self._open.values())):
            total += shard.held_bytes
            if total > HELD_BYTES and shard.held_bytes:
                shard.release()
