"""Trainings on the machines of a cluster: the tiny golden models, a store of them, and what has become of a run."""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nodes.cluster import Node, Remote, wait_until

ROOT = Path(__file__).parents[2]
GOLDEN = ROOT / "tests" / "golden" / "mobilevlm_v2_tiny"
NUM_SAMPLES, STEPS, CHECKPOINT_EVERY = 24, 16, 4
# Environment of every process: this checkout, its interpreter first on the path, the CPU, one thread.
ENVIRONMENT = {
    "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), *filter(None, [os.environ.get("PYTHONPATH")])]),
    "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    "DS_ACCELERATOR": "cpu",
    "CUDA_VISIBLE_DEVICES": "",
    "OMP_NUM_THREADS": "1",
}
# An error of alignkd's processes that is no line of its own: torch marks the lines of such a traceback.
TRACEBACK = re.compile(r"^\[rank\d+\]: ", re.MULTILINE)


@dataclass(frozen=True, kw_only=True)
class Workplace:
    """A shared folder with data and store; every run has a folder of its own in it."""

    folder: Path

    @property
    def store(self) -> Path:
        """The store that one process has written."""
        return self.folder / "store"

    def config(self, folder: Path, *, store: Path | None = None, **train: Any) -> Path:
        """Write `folder/run.yaml`, whose `train.output` is `out`, relative to it, unless it is given."""
        folder.mkdir(parents=True, exist_ok=True)
        settings = {
            "output": "out", "steps": STEPS, "micro_batch": 2, "global_batch": 8, "learning_rate": 1e-3,
            "checkpoint_every": CHECKPOINT_EVERY, "log_every": 1, "report_to": [], **train,
        }  # fmt: skip
        document = {
            "teacher": {"checkpoint": str(GOLDEN / "teacher"), "vision_config": str(GOLDEN / "clip"), "device": "cpu"},
            "student": {"checkpoint": str(GOLDEN / "student"), "vision_config": str(GOLDEN / "clip")},
            "data": {"conversations": str(self._data()), "images": str(GOLDEN.parent / "images"), "template": "v1"},
            "store": {"path": str(store or self.store), "shard_size": 4},
            "train": settings,
        }
        path = folder / "run.yaml"
        path.write_text(json.dumps(document, indent=1))  # JSON is YAML
        return path

    def _data(self) -> Path:
        path = self.folder / "data.json"
        if not path.exists():
            golden = json.loads((GOLDEN / "v1.json").read_text())
            samples = []
            for number in range(NUM_SAMPLES):
                sample = json.loads(json.dumps(golden[number % len(golden)])) | {"id": f"sample-{number}"}
                sample["conversations"][0]["value"] += f" {number}"
                samples.append(sample)
            path.write_text(json.dumps(samples))
        return path


@dataclass
class Started:
    """A command on every machine of a cluster.

    Attributes:
        logs: of each machine, stdout and stderr.
    """

    commands: list[Remote]
    logs: list[Path]
    began: float = field(default_factory=time.monotonic)

    def ended(self, seconds: float) -> list[int | None]:
        """Exit codes; None for a command that still runs after this time."""
        limit = time.monotonic() + seconds
        codes: list[int | None] = []
        for command in self.commands:
            try:
                codes.append(command.wait(max(0.1, limit - time.monotonic())))
            except subprocess.TimeoutExpired:
                codes.append(None)
        return codes

    def is_over(self) -> bool:
        """Whether all of them have ended."""
        return all(command.poll() is not None for command in self.commands)

    def texts(self) -> list[str]:
        """What each machine has written so far."""
        return [log.read_text(errors="replace") for log in self.logs]

    def lines(self) -> list[str]:
        """The last line of alignkd on each machine."""
        found = [[line for line in text.splitlines() if line.startswith("alignkd: ")] for text in self.texts()]
        return [lines[-1] if lines else "" for lines in found]

    def has_traceback(self) -> bool:
        """Whether a process of alignkd ended with a traceback; torchrun always writes one of its own."""
        return any(TRACEBACK.search(text) for text in self.texts())


def start(
    nodes: Sequence[Node], command: Callable[[int], Sequence[object]], folder: Path, name: str, **environment: str
) -> Started:
    """Start `command(number of the machine)` on every machine, in `folder`; logs are `folder/NAME-HOST.log`."""
    commands, logs = [], []
    for number, node in enumerate(nodes):
        logs.append(folder / f"{name}-{node.name}.log")
        with logs[-1].open("wb") as log:
            own = {**ENVIRONMENT, "LOCAL": str(node.local), **environment}
            commands.append(node.start(command(number), folder=folder, log=log, **own))
    return Started(commands, logs)


def torchrun(nodes: Sequence[Node], *, processes: int = 1, restarts: int = 0) -> Callable[[int], list[object]]:
    """The example for torchrun, with a process per machine."""
    settings = [f"NODES={len(nodes)}", f"PROCESSES={processes}", f"RESTARTS={restarts}"]
    return lambda number: ["env", *settings, "bash", ROOT / "examples" / "train-torchrun.sh", nodes[0].name]


def deepspeed(nodes: Sequence[Node], folder: Path) -> Callable[[int], list[object]]:
    """The example for DeepSpeed's launcher, started on every machine because there is no ssh between them."""
    (folder / "hostfile").write_text("".join(f"{node.name} slots=1\n" for node in nodes))
    script = ["bash", ROOT / "examples" / "train-deepspeed.sh", "--no_ssh", "--master_addr", nodes[0].address]
    return lambda number: [*script, "--node_rank", str(number)]


def alignkd(*arguments: object, folder: Path) -> str:
    """The output of a command in a process of its own, outside of the cluster.

    Raises:
        subprocess.CalledProcessError: it failed; stderr is its attribute.
    """
    command = [sys.executable, "-m", "alignkd.pipeline.cli", *map(str, arguments)]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, env={**os.environ, **ENVIRONMENT})
    done.check_returncode()
    return done.stdout


def has_checkpoint(folder: Path, step: int) -> bool:
    """Whether a run has a checkpoint of this step or a later one."""
    return any(int(path.name[5:]) >= step for path in (folder / "out" / "checkpoints").glob("step-*"))


def wait_for_checkpoint(started: Started, folder: Path, step: int, *, seconds: float) -> None:
    """Wait until the run has a checkpoint of this step, or a command has ended."""
    wait_until(
        lambda: has_checkpoint(folder, step) or started.is_over(), f"a checkpoint of step {step}", seconds=seconds
    )


def result_of(folder: Path) -> tuple[bytes, bytes, list[dict[str, Any]]]:
    """What a finished run has made: student, adapters, and the figures of every step that are not times."""
    from alignkd.student_train.output import TIMINGS

    out = folder / "out"
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    figures = [{name: value for name, value in line.items() if name not in TIMINGS} for line in lines]
    return (out / "student" / "model.safetensors").read_bytes(), (out / "adapters.safetensors").read_bytes(), figures


def new_folder(place: Workplace, name: str) -> Path:
    """An empty folder of this name."""
    folder = place.folder / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder
