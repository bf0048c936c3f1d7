"""Device memory of a training step at the real shapes: counted with the code of the product, against `alignkd plan`.

    python benchmarks/step_memory.py [--markdown]

Student and engine are those of `alignkd train` on one device, with the shapes of MobileVLM V2 1.7B and targets of the
7B. They are on torch's device `meta`: nothing is computed, and every tensor that would be allocated is counted while it
lives. Attention counts as a flash kernel. Micro-batches have the greatest length of the recipe. The optimiser step
itself needs kernels, so its part is `alignkd plan`'s arithmetic; CUDA's context, workspaces and fragments are not
counted (assume 1 to 1.5 GiB).
"""

import gc

import click
import torch
from cases.meta_bytes import MetaBytes, flash_attention
from cases.random_step import Pair
from cases.training_case import GIB, MICRO_BATCHES, TrainingCase, backward, real_pair

from alignkd.pipeline.demo.results.table import markdown_table
from alignkd.student_train.distributed.ranks import Ranks
from alignkd.student_train.engine.one_device.engine import OneDeviceEngine

CASES = (
    TrainingCase("adamw_8bit", 1, 512),
    TrainingCase("adamw_8bit", 4, 512),
    TrainingCase("adamw_8bit", 8, 512),
    TrainingCase("adamw_8bit", 16, 512, checkpointing=True),
    TrainingCase("adamw_8bit", 1, 2048),
    TrainingCase("adamw_8bit", 4, 2048, checkpointing=True),
    TrainingCase("adamw", 4, 512),
)


def counted(pair: Pair, case: TrainingCase) -> int:
    """Peak of the forward and backward passes of one optimiser step, in bytes."""
    gc.collect()
    with MetaBytes() as allocations, flash_attention():
        ranks = Ranks(0, 1, torch.device("meta"))
        engine = OneDeviceEngine(
            case.student(pair, "meta").to(pair.dtype), case.config(), dtype=pair.dtype, ranks=ranks
        )
        batch = pair.micro_batch(case.samples, case.length)
        engine.start_step(0, micro_batches=MICRO_BATCHES)
        allocations.peak = allocations.now
        for _ in range(MICRO_BATCHES):
            backward(engine, batch)
    return allocations.peak


@click.command()
@click.option("--markdown", is_flag=True, help="A table for docs/benchmarks.md.")
def main(markdown: bool) -> None:
    """Print a row per case."""
    pair = real_pair()
    rows = [["train.optimizer", "micro-batch", "recomputation", "counted GiB", "planned GiB", "counted / planned"]]
    for case in CASES:
        found, expected = counted(pair, case), case.planned(pair, "meta").peak
        shape, again = f"{case.samples} x {case.length}", "yes" if case.checkpointing else "no"
        figures = f"{found / GIB:.1f}", f"{expected / GIB:.1f}", f"{found / expected:.3f}"
        rows.append([f"`{case.optimizer}`", shape, again, *figures])
    print(markdown_table(rows) if markdown else "\n".join("  ".join(row) for row in rows))


if __name__ == "__main__":
    main()
