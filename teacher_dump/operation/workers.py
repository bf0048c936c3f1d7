"""Several processes that share one dump: which shards are whose, and how a shard is held while it is written.

Worker `rank` of `count` owns every `count`-th shard. When its own are done it takes what others have not finished and
nobody holds, so workers may join, die and come back. What a shard holds depends on the plan alone; two writers of the
same shard would make the same bytes, and the commit lets one of them win.
"""

import re
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, Self

from alignkd.vlm.errors import InputError

_GIVEN = re.compile(r"(\d{1,9})/(\d{1,9})")
# environment variables of launchers: number of this worker, how many there are
TORCHRUN = ("RANK", "WORLD_SIZE")  # torchrun and DeepSpeed's launcher
SLURM_ARRAY = ("SLURM_ARRAY_TASK_ID", "SLURM_ARRAY_TASK_COUNT")


@dataclass(frozen=True, kw_only=True)
class Worker:
    """Worker `rank` (from 0) of `count`."""

    rank: int = 0
    count: int = 1

    def __str__(self) -> str:
        return f"{self.rank}/{self.count}"

    @classmethod
    def parse(cls, given: str) -> Self:
        """The worker that `2/8` names.

        Raises:
            InputError: something else, or no such worker.
        """
        match = _GIVEN.fullmatch(given)
        rank, count = map(int, match.groups()) if match else (0, 0)
        if not rank < count:
            raise InputError(f"worker is {given!r}, expected RANK/COUNT with 0 <= RANK < COUNT, as 2/8")
        return cls(rank=rank, count=count)

    def owns(self, shard: int) -> bool:
        """Whether the shard is one of this worker's own."""
        return shard % self.count == self.rank


def worker_of(environment: Mapping[str, str], given: str | None = None) -> Worker:
    """This process among the workers: as given (`2/8`), else as torchrun, DeepSpeed or a SLURM array says, else alone.

    Raises:
        InputError: numbers that cannot be right.
    """
    if given is not None:
        return Worker.parse(given)
    for rank, count in (TORCHRUN, SLURM_ARRAY):
        if rank in environment and count in environment:
            number = environment[rank]
            if rank == SLURM_ARRAY[0]:
                number = str(_array_position(environment))
            try:
                return Worker.parse(f"{number}/{environment[count]}")
            except InputError as error:
                raise InputError(f"{rank} and {count} in the environment: {error}; or say --worker") from None
    return Worker()


def _array_position(environment: Mapping[str, str]) -> int:
    """A SLURM array may begin anywhere and have steps: `--array=10-40:10` has tasks 10, 20, 30, 40."""
    names = ("SLURM_ARRAY_TASK_ID", "SLURM_ARRAY_TASK_MIN", "SLURM_ARRAY_TASK_MAX", "SLURM_ARRAY_TASK_COUNT")
    values = [environment.get(name, "") for name in names]
    if not all(value.isdecimal() for value in values):
        return int(values[0]) if values[0].isdecimal() else -1
    number, first, last, count = map(int, values)
    step = (last - first) // (count - 1) if count > 1 else 1
    # of an array of single numbers (`--array=1,2,7`) nobody can tell
    even = step > 0 and (number - first) % step == 0
    return (number - first) // step if even else -1


class Claims(Protocol):
    """How shards are held: by locks in a folder, by what workers say of themselves in a bucket."""

    def take(self, shard: int) -> bool:
        """Hold a shard; False if somebody else does, or this process itself."""

    def release(self, shard: int) -> None:
        """Hold it no longer; harmless when it is not held."""


def shards_to_write(
    worker: Worker, claims: Claims, pending: Callable[[], Sequence[int]], is_committed: Callable[[int], bool]
) -> Iterator[int]:
    """The shards that this worker is to write, each taken; the caller releases them.

    First its own, then what others left unfinished and nobody holds, in an order of this worker's own, so that several
    do not meet at the same shard.

    Args:
        pending: gives the shards without a commit record, rising.
        is_committed: the same for one shard, asked when it is held: others may have been faster.
    """
    yield from _taken([shard for shard in pending() if worker.owns(shard)], claims, is_committed)
    while True:
        left = list(pending())
        start = len(left) * worker.rank // worker.count
        # what another worker held a moment ago may be free now: look again until a round finds nothing
        if not (yield from _taken(left[start:] + left[:start], claims, is_committed)):
            return


def _taken(shards: Sequence[int], claims: Claims, is_committed: Callable[[int], bool]) -> Generator[int, None, int]:
    """Yields what is free and not committed; returns how many."""
    found = 0
    for shard in shards:
        if not claims.take(shard):
            continue
        if is_committed(shard):
            claims.release(shard)
            continue
        found += 1
        yield shard
    return found
