"""The shards that a reader keeps in memory: tables of many, files of few.

A globally shuffled reader returns to a shard after all others: opening it again would parse its descriptions and
indices for every record. Tables are kept for as many shards as a limit in bytes allows, descriptors for the shards used
last, and small columns for the shards read most.
"""

import contextlib
from collections import OrderedDict
from collections.abc import Callable

from alignkd.storage.read.shard import OpenShard

# tables and indices of all shards in memory, closed shards included
TABLE_BYTES = 64 << 20
# small columns of all open shards together, and of one
HELD_BYTES = 64 << 20
HELD_BYTES_PER_SHARD = 8 << 20
# a shard is idle after IDLE_ROUNDS x (number of open shards) reads of other shards
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
        """The shard at a place, opened by `open_shard` if necessary; call `done` after reading from it."""
        shard = self._known.get(place)
        if shard is None:
            shard = self._known.setdefault(place, open_shard(place))
            self._bound_tables()
        self._reads += 1
        shard.last_read = self._reads
        try:
            self._known.move_to_end(place)
            self._open.move_to_end(place)
        except KeyError:  # the shard is closed, or another thread dropped it
            self._reopen(place, shard)
        return shard

    def done(self, place: int, shard: OpenShard) -> None:
        """Call after reading a record: holds small columns of a shard that is read often."""
        if self._open.get(place) is not shard:
            # another thread released the shard meanwhile, and the read may have opened files again
            shard.release()
        elif shard.is_busy:
            shard.hold(min(HELD_BYTES_PER_SHARD, self._free_held_bytes()))

    def drop(self, place: int) -> None:
        """Remove a shard; its files are closed with the last reference."""
        self._open.pop(place, None)
        self._known.pop(place, None)

    def _reopen(self, place: int, shard: OpenShard) -> None:
        """Mark a shard as open, and close the shards read longest ago if too many are open."""
        with contextlib.suppress(KeyError):  # another thread dropped the shard, or removed the last one
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
        """Bytes that may still be held, after releasing idle shards."""
        shards = list(self._open.values())
        for shard in shards:
            if shard.held_bytes and self._reads - shard.last_read > IDLE_ROUNDS * len(shards):
                shard.release()
        return max(0, HELD_BYTES - sum(shard.held_bytes for shard in shards))
