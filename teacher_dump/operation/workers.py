"""Several processes that share one dump: assignment of shards, and claims while a shard is written.

Worker `rank` of `count` owns every `count`-th shard. When its own are done, it takes unfinished and unclaimed shards of
others, so workers may join, die and return. The content of a shard depends only on the plan: two writers of one shard
would write the same bytes, and one commit wins.
"""

import re
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, Self

from alignkd.vlm.errors import InputError

_GIVEN = re.compile(r"(\d{1,9})/(\d{1,9})")
# environment variables of launchers: number of this worker, number of workers
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
        """The worker of a text such as `2/8`.

        Raises:
            InputError: another form, or no such worker.
        """
        match = _GIVEN.fullmatch(given)
        rank, count = map(int, match.groups()) if match else (0, 0)
        if not rank < count:
            raise InputError(f"worker is {given!r}, expected RANK/COUNT with 0 <= RANK < COUNT, such as 2/8")
        return cls(rank=rank, count=count)

    def owns(self, shard: int) -> bool:
        """Whether the shard belongs to this worker."""
        return shard % self.count == self.rank


def worker_of(environment: Mapping[str, str], given: str | None = None) -> Worker:
    """The worker of this process: as given (`2/8`), from torchrun, DeepSpeed or a SLURM array, or the only one.

    Raises:
        InputError: invalid numbers.
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
                raise InputError(f"{rank} and {count} in the environment: {error}; or give --worker") from None
    return Worker()


def launched_rank(environment: Mapping[str, str], given: str | None = None) -> int | None:
    """Number of this process among those that torchrun or DeepSpeed's launcher started, which share one terminal.

    Args:
        given: as of `worker_of`.

    Returns:
        None for a process with an output of its own: a given worker, a task of a SLURM array, or the only process.

    Raises:
        InputError: invalid numbers.
    """
    if given is not None or any(name not in environment for name in TORCHRUN):
        return None
    return worker_of(environment).rank


def _array_position(environment: Mapping[str, str]) -> int:
    """Position of this task in a SLURM array, which may start anywhere and have steps: `--array=10-40:10`."""
    names = ("SLURM_ARRAY_TASK_ID", "SLURM_ARRAY_TASK_MIN", "SLURM_ARRAY_TASK_MAX", "SLURM_ARRAY_TASK_COUNT")
    values = [environment.get(name, "") for name in names]
    if not all(value.isdecimal() for value in values):
        return int(values[0]) if values[0].isdecimal() else -1
    number, first, last, count = map(int, values)
    step = (last - first) // (count - 1) if count > 1 else 1
    # unknown for an array of single numbers (`--array=1,2,7`)
    even = step > 0 and (number - first) % step == 0
    return (number - first) // step if even else -1


class Claims(Protocol):
    """Claims of shards: locks in a folder, status files in a bucket."""

    def take(self, shard: int) -> bool:
        """Claim a shard; False if it is already claimed, also by this process."""

    def release(self, shard: int) -> None:
        """Release the claim, if there is one."""


def shards_to_write(
    worker: Worker, claims: Claims, pending: Callable[[], Sequence[int]], is_committed: Callable[[int], bool]
) -> Iterator[int]:
    """The shards for this worker to write, each claimed; the caller releases them.

    First its own, then unfinished and unclaimed shards of others, starting at a different shard for each worker to
    avoid conflicts.

    Args:
        pending: returns the shards without a commit record, ascending.
        is_committed: the same for one shard, called after it is claimed, because another worker may have committed it.
    """
    yield from _taken([shard for shard in pending() if worker.owns(shard)], claims, is_committed)
    while True:
        left = list(pending())
        start = len(left) * worker.rank // worker.count
        # claims of other workers may have been released: repeat until a round finds nothing
        if not (yield from _taken(left[start:] + left[:start], claims, is_committed)):
            return


def _taken(shards: Sequence[int], claims: Claims, is_committed: Callable[[int], bool]) -> Generator[int, None, int]:
    """Yield the shards that are unclaimed and not committed; return their number."""
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
