"""Workers as actors of Ray; the one module that imports ray.

Ray places an actor where its GPUs and CPUs are free, starts its process and notices when that or its machine dies. An
actor is not restarted under its own name (`max_restarts`): its shards would wait for a machine with room, while other
workers are idle; the pool gives them to any worker.
"""

import contextlib
import io
import os
import re
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from alignkd.teacher_dump.cluster.fleet import Answer, Lost, Method
from alignkd.teacher_dump.cluster.member import Member
from alignkd.teacher_dump.job import DumpJob
from alignkd.vlm.errors import InputError, one_line

ADDRESS_SECONDS = 10.0
# calls to one worker at a time: two shards, `open`, `report`, `stop` and `finish`
CALLS = 8
_LOW_MEMORY = re.compile(r"low on memory|NODE_OUT_OF_MEMORY")
_NODE = re.compile(r"node (has|was) (died|terminated)|node died|because its node")


@dataclass(frozen=True, kw_only=True)
class WorkerShape:
    """What a worker occupies of a machine.

    Attributes:
        gpus: number or fraction of a GPU; 0 computes on the CPU unless `teacher.device` is set.
        cpus: number or fraction of CPUs; torch uses as many threads.
    """

    gpus: float = 1.0
    cpus: float = 1.0

    def __str__(self) -> str:
        return f"{self.gpus:g} GPU and {self.cpus:g} CPU"


@contextlib.contextmanager
def ray_fleet(
    job: DumpJob, shape: WorkerShape, address: str | None = None, *, member: type[Member] = Member
) -> Iterator["RayFleet"]:
    """Connect to a Ray cluster for the length of a block, and disconnect from it; its workers end with the block.

    Call it before signal handlers are set, because Ray replaces that of SIGTERM.

    Args:
        address: HOST:PORT of the cluster; None for that of RAY_ADDRESS, the one that runs on this machine, or a new one
            on this machine, which ends with the block.

    Raises:
        InputError: ray is not installed, no cluster at the address, or one of another version.
    """
    # a new cluster reports nothing to anybody
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ImportError:
        raise InputError("--ray needs ray; pip install 'alignkd[ray]'") from None
    _check_device(job, shape)
    # Ray prints pages about dead machines to stdout, where only the result of the command belongs
    with contextlib.redirect_stdout(_Nothing()):
        _connect(ray, address)
        try:
            yield RayFleet(ray, job, shape, member)
        finally:
            ray.shutdown()


def _connect(ray: Any, address: str | None) -> None:
    address = address or os.environ.get("RAY_ADDRESS")
    if address not in (None, "auto", "local"):
        _check_address(str(address))
    # a checkout that the command was started from; everything else is in the environment of the machines
    found = os.environ.get("PYTHONPATH")
    environment = {"env_vars": {"PYTHONPATH": found}} if found else None
    try:
        ray.init(address, runtime_env=environment, log_to_driver=False, logging_level="ERROR")
    except (ConnectionError, RuntimeError, ValueError, TimeoutError) as error:
        raise InputError(
            f"Ray cluster {address or 'on this machine'}: {one_line(error)[:300]}; check --address and RAY_ADDRESS"
        ) from error


def _check_address(address: str) -> None:
    """Refuse an address where nothing answers; Ray would wait for minutes."""
    match = re.fullmatch(r"\[?([^/\]]+?)\]?:(\d{1,5})", address)
    if match is None or int(match[2]) > 65535:
        raise InputError(
            f"--address is {address!r}, expected HOST:PORT of a cluster's head, such as 10.0.0.1:6379, or auto; from a "
            "machine outside of the cluster submit the command by `ray job submit`"
        )
    try:
        socket.create_connection((match[1], int(match[2])), ADDRESS_SECONDS).close()
    except OSError as error:
        raise InputError(
            f"--address {address}: no Ray cluster answers ({error.strerror or one_line(error)}); start one by `ray "
            "start --head`, or check the address"
        ) from None


def _check_device(job: DumpJob, shape: WorkerShape) -> None:
    device = job.teacher.device
    if shape.gpus and device is not None and device.startswith("cuda:") and device != "cuda:0":
        raise InputError(
            f"teacher.device is {device!r}, but a worker sees only the GPU that Ray gives it, as cuda:0; leave it out"
        )


class _Nothing(io.TextIOBase):
    """A stream that drops what is written."""

    def write(self, text: str) -> int:
        return len(text)


class RayFleet:
    """A `Fleet` of actors, named `alignkd-dump-N`; tasks are named `shard N`, both as Ray's dashboard shows them."""

    def __init__(self, ray: Any, job: DumpJob, shape: WorkerShape, member: type[Member]) -> None:
        self._ray, self._shape = ray, shape
        device = job.teacher.device or (None if shape.gpus else "cpu")
        teacher = job.teacher.model_copy(update={"device": device})
        # the control of this process, with its signals and its bar, stays here
        self._job = replace(job, teacher=teacher, control=type(job.control)())
        self._actor = ray.remote(member)
        self._handles: dict[int, Any] = {}
        self._calls: dict[Any, tuple[int, Method, int | None]] = {}

    def cluster(self) -> str:
        """The address of the cluster and what its machines have now, for messages."""
        address = self._ray.get_runtime_context().gcs_address
        machines = sum(node["Alive"] for node in self._ray.nodes())
        has = self._ray.cluster_resources()
        count = f"{machines} machine{'' if machines == 1 else 's'}"
        return f"{address}: {count}, {has.get('GPU', 0):g} GPU and {has.get('CPU', 0):g} CPU"

    def needs(self) -> str:
        return str(self._shape)

    def start(self, worker: int) -> None:
        self._handles[worker] = self._actor.options(
            name=f"alignkd-dump-{worker}",
            num_cpus=self._shape.cpus,
            num_gpus=self._shape.gpus,
            max_concurrency=CALLS,
            max_restarts=0,
            max_task_retries=0,
            scheduling_strategy="SPREAD",
        ).remote(self._job, worker, Path.cwd())
        self.call(worker, "host")

    def call(self, worker: int, method: Method, argument: int | None = None) -> None:
        name = method if argument is None else f"shard {argument}"
        bound = getattr(self._handles[worker], method).options(name=name)
        reference = bound.remote() if argument is None else bound.remote(argument)
        self._calls[reference] = (worker, method, argument)

    def answers(self, seconds: float) -> list[Answer]:
        if not self._calls:
            time.sleep(seconds)
            return []
        ready, _ = self._ray.wait(list(self._calls), num_returns=1, timeout=seconds)
        if ready:
            ready, _ = self._ray.wait(list(self._calls), num_returns=len(self._calls), timeout=0)
        found = []
        for reference in ready:
            worker, method, argument = self._calls.pop(reference)
            found.append(Answer(worker=worker, method=method, argument=argument, value=self._value(reference)))
        return found

    def kill(self, worker: int) -> None:
        self._calls = {reference: call for reference, call in self._calls.items() if call[0] != worker}
        if (handle := self._handles.pop(worker, None)) is not None:
            with contextlib.suppress(Exception):  # it is dead already, or the cluster is
                self._ray.kill(handle)

    def _value(self, reference: Any) -> Any:
        try:
            return self._ray.get(reference)
        except self._ray.exceptions.RayError as error:
            return lost(str(error), is_unavailable=isinstance(error, self._ray.exceptions.ActorUnavailableError))


def lost(text: str, *, is_unavailable: bool = False) -> Lost:
    """What Ray's message about a dead actor means.

    Args:
        is_unavailable: whether the connection to it broke, which is how the death of a machine is seen first.
    """
    if _LOW_MEMORY.search(text):
        return Lost(cause="was killed by Ray, because its machine was low on memory")
    if is_unavailable or _NODE.search(text):
        return Lost(cause="does not answer, its machine is gone", is_of_node=True)
    if "worker process has died" in text:
        return Lost(cause="was killed or crashed (the usual cause is a lack of host memory)")
    # of the traceback of an actor that could not be made, the line of the error
    return Lost(cause=f"ended: {one_line(text.strip().splitlines()[-1])[:300]}")
