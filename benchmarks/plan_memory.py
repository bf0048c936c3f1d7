"""The memory that `alignkd plan` predicts, against the memory that torch allocates in the same run on a CPU.

    python benchmarks/plan_memory.py

A teacher pass and a training of random models with a few million parameters run with the code of the product. Every
tensor that an operation makes is counted while it lives, as a GPU's allocator would count it; workspaces of CUDA's
libraries are not included. On a CPU offloaded state is counted too, so the prediction is that for device and host.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

os.environ.setdefault("DS_ACCELERATOR", "cpu")

from live_bytes import LiveBytes
from torch import Tensor

from alignkd.pipeline.config.run_config import RunConfig
from alignkd.pipeline.demo.world.dataset import write_dataset
from alignkd.pipeline.plan.make import make_plan
from alignkd.pipeline.plan.memory.host import offloaded_of
from alignkd.pipeline.plan.memory.loads import StudentLoad
from alignkd.pipeline.plan.result import PlanOptions
from alignkd.vlm.families.mobilevlm.model.config import load_config, parse_config
from alignkd.vlm.families.mobilevlm.weights.checkpoint import load_model
from alignkd.vlm.families.mobilevlm.weights.loading import new_model
from alignkd.vlm.families.mobilevlm.weights.saving import save_model

TEACHER = Path(__file__).parents[1] / "pipeline" / "demo" / "assets" / "teacher"
MIB = 1 << 20


class DeviceBytes(LiveBytes):
    """Counts without meta tensors: models are built on the meta device before they are loaded."""

    def _note(self, value: Any, *, counted: bool) -> None:
        if not (isinstance(value, Tensor) and value.is_meta):
            super()._note(value, counted=counted)


@contextmanager
def peak_of(allocations: LiveBytes, owner: type, *methods: str) -> Iterator[list[int]]:
    """Peak of the memory allocated during calls of some methods, as a list of one number."""
    found = [0]

    def counted(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            allocations.peak = allocations.now
            result = real(*arguments, **options)
            found[0] = max(found[0], allocations.peak)
            return result

        return call

    before = {name: getattr(owner, name) for name in methods}
    for name, real in before.items():
        setattr(owner, name, counted(real))
    try:
        yield found
    finally:
        for name, real in before.items():
            setattr(owner, name, real)


@dataclass(frozen=True, kw_only=True)
class Shape:
    """A random model."""

    hidden: int = 512
    inner: int = 1408
    layers: int = 8
    heads: int = 8


def random_checkpoint(folder: Path, shape: Shape) -> Path:
    """Write a model of this shape with random weights, the demo's tower and the demo's tokenizer."""
    raw = {
        **load_config(TEACHER).raw,
        "hidden_size": shape.hidden,
        "intermediate_size": shape.inner,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.heads,
        "mm_vision_tower": str(TEACHER / "vision_tower"),
    }
    config = parse_config(raw, path=folder / "config.json")
    model = new_model(config, seed=0)
    model.model.vision_tower.load_state_dict(load_model(TEACHER).model.vision_tower.state_dict())
    save_model(model, folder, tokenizer_from=TEACHER)
    return folder


def run_config(folder: Path, teacher: dict[str, Any], store: dict[str, Any], **sections: dict[str, Any]) -> RunConfig:
    """A configuration over the demo's pictures in `folder`."""
    data = write_dataset(folder / "data", num_scenes=70, pool="train", seed=0, questions_per_scene=6)
    return RunConfig.model_validate(
        {
            "data": {"conversations": str(data.conversations), "images": str(data.images), "max_tokens": 512},
            "teacher": {"checkpoint": str(TEACHER), "sanity": "off", **teacher},
            "store": {"path": str(folder / "store"), "profile": "compact", **store},
            **sections,
        }
    )


def teacher_case(folder: Path, shape: Shape, **settings: Any) -> tuple[int, int]:
    """Predicted and counted bytes of a teacher pass."""
    from alignkd.teacher_dump.dump import dump
    from alignkd.teacher_dump.targets.capture import Capture

    store = settings.pop("store", {})
    run = run_config(folder, {"checkpoint": str(random_checkpoint(folder / "teacher", shape)), **settings}, store)
    with DeviceBytes() as allocations, peak_of(allocations, Capture, "__call__") as peak:
        dump(run.dump_job())
    return make_plan(run, PlanOptions()).teacher.peak, peak[0]


def student_run(folder: Path, shape: Shape, settings: dict[str, Any]) -> RunConfig:
    """A configuration of two optimiser steps of a random student, on a store that is not dumped yet."""
    student = {"checkpoint": str(random_checkpoint(folder / "student", shape)), "dtype": settings.pop("dtype")}
    own = {name: value for name, value in settings.items() if name != "store"}
    train_section = {"output": str(folder / "out"), "steps": 2, "report_to": "none", **own}
    return run_config(folder, {}, settings.pop("store", {}), student=student, train=train_section)


def student_case(folder: Path, shape: Shape, **settings: Any) -> tuple[int, int]:
    """Predicted and counted bytes of two optimiser steps."""
    from alignkd.student_train.engine import build
    from alignkd.student_train.engine.one_device.engine import OneDeviceEngine
    from alignkd.student_train.engine.zero.engine import ZeroEngine
    from alignkd.student_train.trainer import train
    from alignkd.teacher_dump.dump import dump

    run = student_run(folder, shape, settings)
    dump(run.dump_job())
    methods = ("__call__", "backward", "end_micro_batch")
    assert run.train is not None
    engine = ZeroEngine if build.uses_deepspeed(run.train, 1) else OneDeviceEngine
    with DeviceBytes() as allocations, peak_of(allocations, engine, *methods) as peak:
        train(run.train_job())
    planned = make_plan(run, PlanOptions()).student
    assert planned is not None
    return planned.peak + offloaded_of(planned.host_parts), peak[0]


def zero_case(folder: Path, shape: Shape, **settings: Any) -> tuple[int, int]:
    """The same with DeepSpeed on the one device, as it is used on several."""
    from alignkd.student_train.engine import build

    with (
        patch.object(build, "uses_deepspeed", lambda config, world_size: True),
        patch.object(StudentLoad, "in_plain_torch", False),
    ):
        return student_case(folder, shape, **settings)


def host_case(folder: Path, shape: Shape, **settings: Any) -> tuple[int, int]:
    """Predicted and measured memory of a training and its data workers, including a checkpoint.

    On a CPU, device memory is host memory, so both are predicted. The memory of the process before the training is
    measured, in place of the plan's assumption for a process with CUDA.
    """
    from cases.process_memory import Peak, family_bytes

    from alignkd.pipeline.plan.memory.host import PROCESS_BYTES
    from alignkd.student_train.trainer import train
    from alignkd.teacher_dump.dump import dump

    run = student_run(folder, shape, settings)
    if os.fork() == 0:  # so that this process does not keep memory of the dump
        dump(run.dump_job())
        os._exit(0)
    os.wait()
    planned, before = make_plan(run, PlanOptions()).student, family_bytes()
    assert planned is not None
    with Peak() as peak:
        train(run.train_job())
    return planned.peak + planned.host - PROCESS_BYTES + before, peak.bytes


ACCUMULATED = {"dtype": "bfloat16", "micro_batch": 8, "global_batch": 16}
OFFLOADED = {
    "dtype": "bfloat16",
    "micro_batch": 8,
    "global_batch": 16,
    "gradient_checkpointing": True,
    "optimizer": "adamw_offload",
}
CASES: dict[str, tuple[Callable[..., tuple[int, int]], dict[str, Any]]] = {
    "teacher, top-k, 8192 tokens": (teacher_case, {"dtype": "bfloat16", "store": {"logits": {"kind": "topk"}}}),
    "teacher, float32, 2048 tokens": (teacher_case, {"dtype": "float32", "token_budget": 2048}),
    "student, batch 8": (student_case, {"dtype": "bfloat16", "micro_batch": 8}),
    "student, batch 32": (student_case, {"dtype": "bfloat16", "micro_batch": 32}),
    "student, 2 x 8 accumulated": (student_case, ACCUMULATED),
    "student, 2 x 8 accumulated, sums in 16 bits": (student_case, {**ACCUMULATED, "float32_gradients": False}),
    "student, 8 bits, batch 8": (student_case, {"dtype": "bfloat16", "micro_batch": 8, "optimizer": "adamw_8bit"}),
    "student, 8 bits, 2 x 8 accumulated": (student_case, {**ACCUMULATED, "optimizer": "adamw_8bit"}),
    "student, checkpointing": (
        student_case,
        {"dtype": "bfloat16", "micro_batch": 32, "gradient_checkpointing": True},
    ),
    "student, from the stem": (student_case, {"dtype": "bfloat16", "micro_batch": 32, "store": {"profile": "stem"}}),
    "student, float32": (student_case, {"dtype": "float32", "micro_batch": 16}),
    "student under ZeRO-2, batch 8": (zero_case, {"dtype": "bfloat16", "micro_batch": 8}),
    "student under ZeRO-2, 2 x 8 accumulated": (zero_case, ACCUMULATED),
    "student, checkpointing, offload": (
        student_case,
        {"dtype": "bfloat16", "micro_batch": 32, "gradient_checkpointing": True, "optimizer": "adamw_offload"},
    ),
    "student, 2 x 8, offload": (student_case, {**OFFLOADED, "float32_gradients": True}),
    "student, 2 x 8, offload, sums in 16 bits": (student_case, {**OFFLOADED, "float32_gradients": False}),
    "processes, 2 x 8, offload, no data workers": (host_case, OFFLOADED),
    "processes, 2 x 8, offload, 2 data workers": (host_case, {**OFFLOADED, "data_workers": 2}),
}


def main() -> None:
    """Print every case, or one case, as a row of a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", choices=list(CASES), help="one case only")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if options.case is None:
        for name in CASES:  # each in a process of its own, which has no memory of others
            subprocess.run([sys.executable, __file__, *sys.argv[1:], "--case", name], check=True)
        return
    case, settings = CASES[options.case]
    with tempfile.TemporaryDirectory(prefix="alignkd-memory-") as folder:
        predicted, counted = case(Path(folder), Shape(), **dict(settings))
    row = {"case": options.case, "predicted": predicted, "counted": counted, "ratio": predicted / counted}
    shown = f"| {options.case} | {predicted / MIB:.0f} MiB | {counted / MIB:.0f} MiB | {predicted / counted:.2f} |"
    print(json.dumps(row) if options.json else shown, flush=True)


if __name__ == "__main__":
    main()
