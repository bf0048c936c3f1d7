"""The shards that a reader keeps in memory: tables of many, files of few.

A globally shuffled reader comes back to a shard after all others: opening it anew would parse its descriptions and
indices for every record. Tables are kept for as many shards as a bound in bytes allows, descriptors for those used
last, and the small columns of those that are read most.
"""

import contextlib
from collections import OrderedDict
from collections.abc import Callable

from alignkd.storage.read.shard import OpenShard

# tables and indices of all shards in memory, closed ones among them
TABLE_BYTES = 64 << 20
# small columns of all open shards together, and of one
HELD_BYTES = 64 << 20
HELD_BYTES_PER_SHARD = 8 << 20
# a shard that so many times as many reads as there are open shards went past is not read any more
IDLE_ROUNDS = 8


class ShardCache:
    """Shards by place, least recently used first; threads may share it."""

    def __init__(self, max_open: int) -> None:
        """`max_open`: shards that may have open files."""
        self._max_open = max_open
        self._known: OrderedDict[int, OpenShard] = OrderedDict()
        self._open: OrderedDict[int, OpenShard] = OrderedDict()
        self._reads = 0

    def get(self, place: int, open_shard: Callable[[int], OpenShard]) -> OpenShard:
        """The shard at a place, opened by `open_shard` if it is not known; `done` must follow once it has been read."""
        shard = self._known.get(place)
        if shard is None:
            shard = self._known.setdefault(place, open_shard(place))
            self._bound_tables()
        self._reads += 1
        shard.last_read = self._reads
        try:
            self._known.move_to_end(place)
            self._open.move_to_end(place)
        except KeyError:  # it is closed, or another thread dropped it
            self._reopen(place, shard)
        return shard

    def done(self, place: int, shard: OpenShard) -> None:
        """A record was read: hold small columns of a shard that is read often."""
        if self._open.get(place) is not shard:
            # another thread released it meanwhile, and the reading may have opened files again
            shard.release()
        elif shard.is_busy:
            shard.hold(min(HELD_BYTES_PER_SHARD, self._free_held_bytes()))

    def drop(self, place: int) -> None:
        """Forget a shard; its files close with the last reference."""
        self._open.pop(place, None)
        self._known.pop(place, None)

    def _reopen(self, place: int, shard: OpenShard) -> None:
        """Note that a shard may have open files, and close those of the shards that were read longest ago."""
        with contextlib.suppress(KeyError):  # another thread dropped it, or took the last one
            for shards in (self._known, self._open):
                shards[place] = shard
                shards.move_to_end(place)
            while len(self._open) > self._max_open:
                self._open.popitem(last=False)[1].release()

    def _bound_tables(self) -> None:
        known = list(self._known.items())
        surplus = sum(shard.num_bytes for _, shard in known) - TABLE_BYTES
        for place, shard in known[:-1]:
            if surplus <= 0:
                break
            self.drop(place)
            surplus -= shard.num_bytes

    def _free_held_bytes(self) -> int:
        """What may still be held, once shards that are not read any more have given theirs back."""
        shards = list(self._open.values())
        for shard in shards:
            if shard.held_bytes and self._reads - shard.last_read > IDLE_ROUNDS * len(shards):
                shard.release()
        return max(0, HELD_BYTES - sum(shard.held_bytes for shard in shards))
