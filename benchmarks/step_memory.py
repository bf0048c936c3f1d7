"""Device memory of a training step at the real shapes: counted with the code of the product, against `alignkd plan`.

    python benchmarks/step_memory.py [--markdown]

Student and engine are those of `alignkd train` on one device, with the shapes of MobileVLM V2 1.7B and targets of the
7B. They are on torch's device `meta`: nothing is computed, and every tensor that would be allocated is counted while it
lives. Attention counts as a flash kernel. Micro-batches have the greatest length of the recipe. The optimiser step
itself needs kernels, so its part is `alignkd plan`'s arithmetic; CUDA's context, workspaces and fragments are not
counted (assume 1 to 1.5 GiB).
"""

import gc
from dataclasses import dataclass
from pathlib import Path

import click
import torch
from cases.meta_bytes import MetaBytes, flash_attention
from cases.random_step import Pair

from alignkd.pipeline.demo.results.table import markdown_table
from alignkd.pipeline.plan.memory.student import student_memory
from alignkd.student_train.config import OptimizerName, TrainConfig
from alignkd.student_train.distributed.ranks import Ranks
from alignkd.student_train.engine.one_device.engine import OneDeviceEngine
from alignkd.student_train.objective.objective import weighted_total
from alignkd.vlm.families.mobilevlm.model.sizes import family_config

GIB = 1 << 30
MICRO_BATCHES = 2


@dataclass(frozen=True)
class Case:
    """A micro-batch of equal samples."""

    optimizer: OptimizerName
    samples: int
    length: int
    checkpointing: bool = False


CASES = (
    Case("adamw_8bit", 1, 512),
    Case("adamw_8bit", 4, 512),
    Case("adamw_8bit", 8, 512),
    Case("adamw_8bit", 16, 512, checkpointing=True),
    Case("adamw_8bit", 1, 2048),
    Case("adamw_8bit", 4, 2048, checkpointing=True),
    Case("adamw", 4, 512),
)


def real_pair() -> Pair:
    """The student of 1.7B and the teacher of 7B."""
    return Pair(student=family_config("MobileVLM_V2-1.7B"), teacher=family_config("MobileVLM_V2-7B"))


def counted(pair: Pair, case: Case) -> int:
    """Peak of the forward and backward passes of one optimiser step, in bytes."""
    gc.collect()
    with MetaBytes() as allocations, flash_attention():
        engine = engine_on_meta(pair, case)
        batch = pair.micro_batch(case.samples, case.length)
        weights = engine.student.losses.weights
        engine.start_step(0, micro_batches=MICRO_BATCHES)
        allocations.peak = allocations.now
        for _ in range(MICRO_BATCHES):
            engine.backward(weighted_total(engine(batch), weights, dict.fromkeys(weights, 1000)))
    return allocations.peak


def engine_on_meta(pair: Pair, case: Case) -> OneDeviceEngine:
    """The engine of `alignkd train` with a student without values."""
    config = TrainConfig.model_validate(
        {
            "output": Path("never"),
            "steps": 1,
            "micro_batch": case.samples,
            "global_batch": case.samples * MICRO_BATCHES,
            "optimizer": case.optimizer,
            "gradient_checkpointing": case.checkpointing,
            "preset": "paper",
        }
    )
    student = pair.new_student("meta", checkpointing=case.checkpointing).to(pair.dtype)
    return OneDeviceEngine(student, config, dtype=pair.dtype, ranks=Ranks(0, 1, torch.device("meta")))


def planned(pair: Pair, case: Case) -> int:
    """The peak that `alignkd plan` predicts, in bytes."""
    settings = {"optimizer": case.optimizer, "gradient_checkpointing": case.checkpointing, "accumulates": True}
    return student_memory(pair.shapes, pair.load(case.samples, case.length, "meta", **settings)).peak


@click.command()
@click.option("--markdown", is_flag=True, help="A table for docs/benchmarks.md.")
def main(markdown: bool) -> None:
    """Print a row per case."""
    pair = real_pair()
    rows = [["train.optimizer", "micro-batch", "recomputation", "counted GiB", "planned GiB", "counted / planned"]]
    for case in CASES:
        found, expected = counted(pair, case), planned(pair, case)
        shape, again = f"{case.samples} x {case.length}", "yes" if case.checkpointing else "no"
        figures = f"{found / GIB:.1f}", f"{expected / GIB:.1f}", f"{found / expected:.3f}"
        rows.append([f"`{case.optimizer}`", shape, again, *figures])
    print(markdown_table(rows) if markdown else "\n".join("  ".join(row) for row in rows))


if __name__ == "__main__":
    main()
