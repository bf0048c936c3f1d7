"""`alignkd dump CONFIG --ray` with workers that have accidents: `python ray_driver.py CONFIG ADDRESS MAX_WORKERS`.

The accidents are in `accidents.json` beside the store, by shard: a list with one for each time that a worker begins the
shard. `kill` ends the process as the kernel's OOM killer does, `memory` lacks host memory. `nodes` names the node of
the head: a worker on another node stops for ever with its first shard, and the one on the head stops with its third
until a worker on a new node has begun one. No device has memory for more than one sample. Prints the result and the
notices as JSON.
"""

import json
import os
import signal
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from alignkd.storage.write.shard import ShardWriter
from alignkd.teacher_dump.cluster.member import Member
from alignkd.teacher_dump.operation.control import DumpControl
from alignkd.teacher_dump.operation.shard_thread import ShardThread
from alignkd.teacher_dump.targets.capture import Capture

TICK_SECONDS = 0.02


class ClumsyMember(Member):
    """A worker that has the accidents."""

    def __init__(self, job: Any, number: int, folder: Path) -> None:
        self.place, self.begun = Path(job.store.path).parent, 0
        small_device()
        begin = ShardThread.begin

        def begun(thread: ShardThread, sink: ShardWriter) -> None:
            begin(thread, sink)
            self.meet(sink.shard)

        ShardThread.begin = begun  # type: ignore[method-assign]
        super().__init__(job, number, folder)

    def meet(self, shard: int) -> None:
        accidents = json.loads((self.place / "accidents.json").read_text())
        for number, kind in enumerate(accidents.get(str(shard), [])):
            if self.is_first(f"{shard}-{number}"):
                if kind == "kill":
                    os.kill(os.getpid(), signal.SIGKILL)
                raise MemoryError("no memory for a record")
        if "nodes" in accidents:
            self.begun += 1
            self.meet_nodes(is_on_head=self.node() == accidents["nodes"])

    def meet_nodes(self, *, is_on_head: bool) -> None:
        if not is_on_head and self.is_first("halted"):
            while True:
                time.sleep(TICK_SECONDS)
        if not is_on_head:
            (self.place / "joined").touch()
        while is_on_head and self.begun > 2 and not (self.place / "joined").exists():
            time.sleep(TICK_SECONDS)

    def is_first(self, mark: str) -> bool:
        try:
            (self.place / mark).touch(exist_ok=False)
        except FileExistsError:
            return False
        return True

    def node(self) -> str:
        import ray

        return str(ray.get_runtime_context().get_node_id())


def small_device() -> None:
    """A device with memory for one sample."""
    compute = Capture.__call__

    def within(capture: Capture, batch: Any) -> Any:
        if len(batch) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return compute(capture, batch)

    Capture.__call__ = within  # type: ignore[method-assign]


def run(config: Path, address: str, max_workers: int) -> None:
    from alignkd.pipeline.config.recipes import load_stage
    from alignkd.teacher_dump.cluster.pool import dump_on
    from alignkd.teacher_dump.cluster.ray_fleet import WorkerShape, ray_fleet

    notices: list[str] = []
    job = replace(load_stage(config, "dump", None).dump_job(), control=DumpControl(notice=notices.append))
    with ray_fleet(job, WorkerShape(gpus=0), address, member=ClumsyMember) as fleet:
        result = dump_on(fleet, job, max_workers=max_workers)
    print(json.dumps({"notices": notices, "status": asdict(job.control.status), **asdict(result)}))


if __name__ == "__main__":
    # under its own name, which the workers import
    import ray_driver

    ray_driver.run(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
