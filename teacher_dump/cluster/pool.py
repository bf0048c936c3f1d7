"""Assigns the shards of a dump to the workers of a fleet, which may come and go.

The engine decides where a worker runs and notices when it dies. This loop keeps a few requests for workers open as long
as there are shards for them, so that a machine that joins the cluster gets a worker; it returns the shards of a worker
that died to the queue, and releases workers that have nothing left to do.
"""

import sys
import time
from collections import Counter, deque
from contextlib import suppress
from dataclasses import dataclass, field

from alignkd.storage.errors import StoreError
from alignkd.storage.places import load_manifest
from alignkd.storage.read.listing import list_shards
from alignkd.storage.schema.plan import store_plan
from alignkd.storage.write.store import open_place
from alignkd.teacher_dump.cluster.fleet import Answer, Fleet, Lost
from alignkd.teacher_dump.cluster.member import Ended, Fate, Report
from alignkd.teacher_dump.job import DumpJob, DumpResult, stored_result
from alignkd.teacher_dump.operation.control import clear_status
from alignkd.teacher_dump.operation.status import WorkerStatus
from alignkd.teacher_dump.operation.stops import DumpStopped
from alignkd.teacher_dump.sanity_report import SanityFinding
from alignkd.vlm.errors import InputError

TICK_SECONDS = 0.5
REPORT_SECONDS = 1.0
# a shard that another worker has claimed: that worker may have died, and a bucket shows it only later
CLAIMED_SECONDS = 2.0
# after so long without any worker the user is told what the cluster lacks
NO_ROOM_SECONDS = 30.0
# attempts to write a shard or to load a teacher, and those among them that ended with the machine
MAX_ATTEMPTS = 4
MAX_LOST_NODES = 20


def dump_on(fleet: Fleet, job: DumpJob, *, max_workers: int | None = None) -> DumpResult:
    """Write the shards of `job` that are not committed yet, by workers of `fleet`; as `dump`.

    Args:
        max_workers: no more workers at a time; None for as many as the cluster has room for.

    Raises:
        InputError: as `dump`, from any of the workers; or a shard that ended its worker several times.
        StoreError: the store cannot be read.
        DumpStopped: a signal made it abandon the current shards.
    """
    stops = job.control.stops
    pool = _Pool(fleet, job, max_workers)
    # with an announcement, a signal is only noted, wherever the engine is at that moment
    stops.announce = pool.finishing_line
    try:
        return pool.run()
    finally:
        pool.end()
        stops.announce = None


@dataclass
class _Hired:
    """A worker of the pool.

    Attributes:
        number: number of the worker.
        host: name of its machine; empty until the engine has placed it.
        is_open: whether its teacher is loaded.
        is_leaving: whether it was told to end.
        shards: assigned and not written yet, in the order of assignment.
    """

    number: int
    host: str = ""
    is_open: bool = False
    is_leaving: bool = False
    shards: list[int] = field(default_factory=list)


class _Pool:
    def __init__(self, fleet: Fleet, job: DumpJob, max_workers: int | None) -> None:
        self._fleet, self._job, self._control, self._limit = fleet, job, job.control, max_workers
        self._hired: dict[int, _Hired] = {}
        self._next_number = 0
        self._queue: deque[int] | None = None  # None until a worker has opened the store
        self._claimed: dict[int, float] = {}  # when to try again
        self._sizes: dict[int, int] = {}
        self._written: set[int] = set()
        self._done: set[int] = set()
        self._failed: Counter[int | None] = Counter()  # by shard; None: before the worker had one
        self._lost_nodes: Counter[int | None] = Counter()
        self._reports: dict[int, WorkerStatus] = {}
        self._report_due: dict[int, float] = {}
        self._told: set[str] = set()
        self._sanity: tuple[SanityFinding, ...] = ()
        self._started = self._last_placed = time.monotonic()
        self._is_stopping = False

    def run(self) -> DumpResult:
        while not self._is_over():
            self._grow()
            for answer in self._fleet.answers(TICK_SECONDS):
                self._take(answer)
            self._control.check()
            if self._control.stops.finishing:
                self._stop()
            self._assign()
            self._ask_for_reports()
            self._show()
        if self._is_stopping and not self._sizes:
            raise DumpStopped(self._control.stops.received)
        return self._stored()

    def end(self) -> None:
        """End all workers; no worker is left when an error ends the dump, either."""
        for number in list(self._hired):
            self._dismiss(number)

    def finishing_line(self) -> str:
        """What a first Ctrl-C does now."""
        shards = sum(len(worker.shards[:1]) for worker in self._hired.values())
        if not shards:
            return "alignkd: no shard is being written; the dump ends"
        count = "1 shard" if shards == 1 else f"{shards} shards"
        return f"alignkd: finishing {count}; Ctrl-C again abandons what is not written"

    def _is_over(self) -> bool:
        is_written = self._queue is not None and not self._left()
        return not self._hired and (is_written or self._is_stopping)

    def _left(self) -> int:
        """Shards that are neither written nor in the hands of a worker."""
        return len(self._queue or ()) + len(self._claimed)

    def _grow(self) -> None:
        """Keep as many requests open as there are workers, and at least one, but no more than there are shards."""
        if self._is_stopping:
            return
        placed = sum(bool(worker.host) for worker in self._hired.values())
        waiting = len(self._hired) - placed
        if placed:
            self._last_placed = time.monotonic()
        elif waiting and time.monotonic() - self._last_placed > NO_ROOM_SECONDS:
            self._tell(
                f"no machine of the cluster has {self._fleet.needs()} free; waiting for one (--gpus-per-worker and "
                "--cpus-per-worker change what a worker needs)"
            )
        for _ in range(min(self._most_workers() - len(self._hired), max(1, placed) - waiting)):
            worker = _Hired(self._next_number)
            self._next_number += 1
            self._hired[worker.number] = worker
            self._fleet.start(worker.number)

    def _most_workers(self) -> int:
        limit = self._limit or sys.maxsize
        if self._queue is None:
            return limit
        in_hand = sum(len(worker.shards) for worker in self._hired.values())
        return min(limit, self._left() + in_hand) if self._left() else 0

    def _take(self, answer: Answer) -> None:
        worker = self._hired.get(answer.worker)
        if worker is None:  # an answer of a worker that was dismissed in the meantime
            return
        if isinstance(answer.value, Lost):
            where = f" on {worker.host}" if worker.host else ""
            self._lose(worker, f"the worker{where} {answer.value.cause}", is_of_node=answer.value.is_of_node)
        elif answer.method == "host":
            worker.host = answer.value
            self._fleet.call(worker.number, "open")
            self._report_due[worker.number] = time.monotonic()
        elif answer.method == "open":
            self._opened(worker, answer.value)
        elif answer.method == "write":
            assert answer.argument is not None
            self._settle(worker, answer.argument, answer.value)
        elif answer.method == "finish":
            self._finished(worker, answer.value)
        elif answer.method == "report":
            self._reported(worker, answer.value)

    def _opened(self, worker: _Hired, pending: list[int] | None) -> None:
        if pending is None:  # the dump of this worker has ended; `finish` tells why
            worker.is_leaving = True
            self._fleet.call(worker.number, "finish")
            return
        worker.is_open = True
        for counter in (self._failed, self._lost_nodes):
            counter.pop(None, None)
        if self._queue is None:
            plan = store_plan(load_manifest(self._job.store.path))
            self._sizes = {shard: len(plan[shard]) for shard in pending}
            self._queue = deque(pending)

    def _settle(self, worker: _Hired, shard: int, fate: Fate) -> None:
        """What became of an assigned shard."""
        if fate == "left":  # `finish` tells why
            self._let_go(worker)
            return
        worker.shards.remove(shard)
        if fate == "claimed":
            self._claimed[shard] = time.monotonic() + CLAIMED_SECONDS
        else:
            self._done.add(shard)
            # of a worker of this run that died after its commit
            if fate == "written" or self._failed[shard] or self._lost_nodes[shard]:
                self._written.add(shard)

    def _finished(self, worker: _Hired, ended: Ended) -> None:
        for shard in [shard for shard in worker.shards if shard in ended.fates]:
            self._settle(worker, shard, ended.fates[shard])  # the answer to `write` may come later
        if ended.report is not None:
            self._reported(worker, ended.report)
        if ended.is_certain:
            raise InputError(ended.problem)
        if ended.result is None:
            self._lose(worker, f"the worker on {worker.host} ended: {ended.problem}", is_of_node=False)
            return
        self._dismiss(worker.number)
        self._give_back(worker.shards)
        self._sanity = self._sanity or ended.result.sanity
        if not worker.is_open:  # it found every shard committed
            self._queue = deque()
            self._claimed.clear()

    def _lose(self, worker: _Hired, cause: str, *, is_of_node: bool) -> None:
        """Return the shards of a worker that died, unless the first of them has ended too many workers."""
        self._dismiss(worker.number)
        shards, worker.shards = worker.shards, []
        self._give_back(shards)
        if worker.is_open and worker.is_leaving and not shards:
            return
        first = shards[0] if shards else None
        (self._lost_nodes if is_of_node else self._failed)[first] += 1
        failed, gone = self._failed[first], self._lost_nodes[first]
        what = f"shard {first}" if shards else "loading the teacher"
        if failed >= MAX_ATTEMPTS or gone >= MAX_LOST_NODES:
            raise InputError(
                f"{what}: {cause}, at the last of {failed + gone} attempts; lower teacher.token_budget, teacher.batch "
                f"or teacher.window, or let a worker have more of a machine than {self._fleet.needs()} "
                "(--gpus-per-worker, --cpus-per-worker), and run the same command again"
            )
        self._control.notice(f"{what}: {cause}; {'tried again' if shards else 'another one is started'}")

    def _give_back(self, shards: list[int]) -> None:
        if self._queue is not None:  # without a queue no shard was assigned
            self._queue.extendleft(reversed(shards))

    def _assign(self) -> None:
        """Give every worker a shard, and one more while there are many, whose samples it prepares meanwhile."""
        if self._queue is None or self._is_stopping:
            return
        now = time.monotonic()
        for shard in [shard for shard, when in self._claimed.items() if when <= now]:
            del self._claimed[shard]
            self._queue.append(shard)
        workers = [worker for worker in self._hired.values() if worker.is_open and not worker.is_leaving]
        for worker in sorted(workers, key=lambda worker: len(worker.shards)):
            while self._queue and self._has_room(worker, self._queue[0], len(workers)):
                shard = self._queue.popleft()
                worker.shards.append(shard)
                self._fleet.call(worker.number, "write", shard)
        if not self._left():
            for worker in list(self._hired.values()):
                if not worker.shards:
                    self._let_go(worker)

    def _has_room(self, worker: _Hired, shard: int, num_workers: int) -> bool:
        if not worker.shards:
            return True
        # a shard that ended a worker has one for itself, so that it is known which one ends the next
        is_alone = any(self._failed[each] for each in (shard, *worker.shards))
        return not is_alone and len(worker.shards) < 2 and len(self._queue or ()) > num_workers

    def _let_go(self, worker: _Hired) -> None:
        """End a worker in an orderly way; one that is not ready yet has nothing to put in order."""
        if worker.is_leaving:
            return
        worker.is_leaving = True
        if worker.is_open:
            self._fleet.call(worker.number, "finish")
        else:
            self._dismiss(worker.number)

    def _dismiss(self, number: int) -> None:
        self._hired.pop(number, None)
        self._report_due.pop(number, None)
        self._fleet.kill(number)

    def _stop(self) -> None:
        """After the first Ctrl-C: let the current shards be finished."""
        if self._is_stopping:
            for worker in list(self._hired.values()):
                if not worker.shards:
                    self._let_go(worker)
            return
        self._is_stopping = True
        for worker in list(self._hired.values()):
            if worker.shards:
                self._fleet.call(worker.number, "stop")
            elif not worker.is_open:
                self._dismiss(worker.number)

    def _ask_for_reports(self) -> None:
        now = time.monotonic()
        for number, due in list(self._report_due.items()):
            if due <= now:
                del self._report_due[number]  # until it has answered
                self._fleet.call(number, "report")

    def _reported(self, worker: _Hired, report: Report) -> None:
        self._report_due[worker.number] = time.monotonic() + REPORT_SECONDS
        self._reports[worker.number] = report.status
        for notice in report.notices:
            self._tell(notice)

    def _tell(self, notice: str) -> None:
        """Show a notice once, though every worker has it."""
        if notice not in self._told:
            self._told.add(notice)
            self._control.notice(notice)

    def _show(self) -> None:
        """The counters of all workers, for the progress bar."""
        done = sum(self._sizes.get(shard, 0) for shard in self._done)
        for worker in self._hired.values():
            if worker.number in self._reports:  # it may be older than the last commit
                planned = sum(self._sizes.get(shard, 0) for shard in worker.shards)
                done += min(self._reports[worker.number].in_hand, planned)
        errors = sum(status.errors for status in self._reports.values())
        total = sum(self._sizes.values())
        self._control.show(WorkerStatus(worker="cluster", samples=done, total=total, errors=errors))

    def _stored(self) -> DumpResult:
        """What the store holds now, and what this run wrote of it."""
        path = self._job.store.path
        shards = list_shards(path)
        is_complete = all(shard.committed for shard in shards)
        if is_complete:
            with suppress(OSError, StoreError):
                clear_status(open_place(path))
        return stored_result(
            path,
            data=self._job.data[0].path,
            num_samples=load_manifest(path).num_samples,
            is_complete=is_complete,
            written=sum(shard.num_records for shard in shards if shard.shard in self._written),
            shards_written=len(self._written),
            seconds=time.monotonic() - self._started,
            halved_batches=sum(status.halved for status in self._reports.values()),
            sanity=self._sanity,
        )
