"""The attention loss with keys made contiguous once and the device's chunk size, against keys copied for each chunk.

    python benchmarks/attention_loss.py [--micro-batch 8 --micro-batch 16] [--tokens 512] [--rounds 5] [--markdown]
    python benchmarks/attention_loss.py --count --tokens 2048 --micro-batch 4

The loss of one layer of the 1.7B student (16 heads of 128) against stored attention of the 7B teacher (32 heads): rows
of queries and keys from the projections' outputs, forward and backward pass down to these outputs. Both ways are
measured in turn in one run. On a CPU, seconds are the processor time of the process, which other work on the machine
affects less.

* as it was: queries and keys in the memory order [B, L, H, d] of the projections, chunks of 8 MiB;
* as it is: the code of the objective.

`--count` counts operations and kernels of both ways on the meta device, for a GPU's chunk size. A kernel is an
operation that returns no view of its input and does not only allocate. Nothing is computed, so any shape is possible.
"""

import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import click
import torch
from cases.attention_before import CHUNK_MIB, as_projected
from cases.measuring import machine
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from alignkd.student_train.data.decode import EncodedTensor
from alignkd.student_train.data.targets import AttentionTargets
from alignkd.student_train.objective.adapters import Adapters
from alignkd.student_train.objective.attention.map_losses import chunked_map_loss
from alignkd.student_train.objective.attention.match import MAP_FORMS, AttentionForm, HeadWeights
from alignkd.student_train.objective.attention.rows_of_pair import RowsOfPair
from alignkd.student_train.objective.attention.term import chunked_attention_loss
from alignkd.vlm.attention.attention_rows import CHUNK_BYTES, chunk_bytes_on
from alignkd.vlm.families.mobilevlm.model import attention as llama_attention

HEADS, HEAD_SIZE, TEACHER_HEADS = 16, 128, 32
VISION_TOKENS, BEFORE_IMAGE = 144, 36
ALLOCATIONS = {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "detach", "_unsafe_view"}


@dataclass(frozen=True, kw_only=True)
class Work:
    """One micro-batch: outputs of the projections, targets, adapters."""

    model: Any
    query_BLD: Tensor
    key_BLD: Tensor
    targets: AttentionTargets
    adapters: Adapters
    form: AttentionForm

    def run(self, chunk_bytes: int) -> list[Tensor]:
        """Forward and backward pass; the loss and the gradients of the projections."""
        weight_ST, bias_S = self.adapters.attention_weights()
        heads = HeadWeights(weight_ST=weight_ST, bias_S=bias_S)
        vision_BR = torch.ones_like(self.targets.rows_BR, dtype=torch.bool)  # the most that are compared
        pair = RowsOfPair(targets=self.targets, teacher=(0,), heads=heads, form=self.form, vision_BR=vision_BR)
        layer = llama_attention.LlamaAttentionLayer(self.model, 0, self.query_BLD, self.key_BLD)
        inputs = layer.row_inputs(self.targets.rows_BR)
        if self.form in MAP_FORMS:
            loss = chunked_map_loss(pair, inputs, len(self.query_BLD), chunk_bytes=chunk_bytes)
        else:
            loss = chunked_attention_loss(pair, inputs, chunk_bytes=chunk_bytes)
        return [loss.total, *torch.autograd.grad(loss.total, (self.query_BLD, self.key_BLD, weight_ST))]


class Kernels(TorchDispatchMode):
    """Counts operations, and those that launch a kernel."""

    def __init__(self) -> None:
        super().__init__()
        self.operations = self.kernels = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        schema = func._schema
        is_view = any(found.alias_info is not None and not found.alias_info.is_write for found in schema.returns)
        self.operations += 1
        self.kernels += not is_view and schema.name.rpartition("::")[2] not in ALLOCATIONS
        return func(*args, **(kwargs or {}))


@click.command()
@click.option("--micro-batch", type=int, multiple=True, default=(8, 16), show_default=True)
@click.option("--tokens", default=512, show_default=True, help="Length of every sample, 144 vision tokens included.")
@click.option("--form", type=click.Choice(["mse", "kl", "row_cosine"]), default="mse", show_default=True)
@click.option("--rounds", default=5, show_default=True, help="Timed runs of each way; one more warms up.")
@click.option("--dtype", type=click.Choice(["float32", "bfloat16"]), default="float32", show_default=True)
@click.option("--count", is_flag=True, help="Count kernels on the meta device; measure no time.")
@click.option("--markdown", is_flag=True, help="A table for docs/benchmarks.md.")
def main(
    micro_batch: tuple[int, ...],
    tokens: int,
    form: AttentionForm,
    rounds: int,
    dtype: str,
    count: bool,
    markdown: bool,
) -> None:
    """Measure seconds of the attention loss, or count its kernels, as it was and as it is.

    Example: python benchmarks/attention_loss.py --micro-batch 2 --rounds 1
    """
    print(f"`{' '.join(['python benchmarks/attention_loss.py', *sys.argv[1:]])}`\n\n{machine()}\n", flush=True)
    names = ("micro-batch", "tokens", *(COUNTED if count else TIMED))
    print(_line(names, markdown) + ("\n" + _line(["--:"] * len(names), markdown) if markdown else ""), flush=True)
    for samples in micro_batch:
        device = "meta" if count else "cuda" if torch.cuda.is_available() else "cpu"
        work = work_of(samples, tokens, form, getattr(torch, dtype), device)
        cells = _counted(work) if count else _timed(work, rounds, device)
        print(_line([samples, tokens, *cells], markdown), flush=True)


COUNTED = ("operations before", "after", "kernels before", "after")
TIMED = ("before, s", "after, s", "ratio", "lowest..highest", "largest difference")


def _counted(work: Work) -> list[str]:
    with as_projected(), Kernels() as before:
        work.run(CHUNK_MIB << 20)
    with Kernels() as after:
        work.run(CHUNK_BYTES)
    return [f"{found:,}" for found in (before.operations, after.operations, before.kernels, after.kernels)]


def _timed(work: Work, rounds: int, device: str) -> list[str]:
    before: list[Tensor] = []
    after: list[Tensor] = []

    def as_it_was() -> None:
        with as_projected():
            before[:] = work.run(CHUNK_MIB << 20)

    def as_it_is() -> None:
        after[:] = work.run(chunk_bytes_on(device))

    pairs = [(_seconds(as_it_was), _seconds(as_it_is)) for _ in range(rounds + 1)][1:]
    ratios = [old / new for old, new in pairs]
    differences = [
        float(((own - other).norm() / other.norm()).detach()) for own, other in zip(after, before, strict=True)
    ]
    old_s, new_s = (statistics.median(column) for column in zip(*pairs, strict=True))
    spread = f"{min(ratios):.2f}..{max(ratios):.2f}"
    return [f"{old_s:.2f}", f"{new_s:.2f}", f"{statistics.median(ratios):.2f}", spread, f"{max(differences):.0e}"]


def _seconds(work: Callable[[], None]) -> float:
    clock = time.perf_counter if torch.cuda.is_available() else time.process_time
    started = clock()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return clock() - started


def work_of(samples: int, tokens: int, form: AttentionForm, dtype: torch.dtype, device: str) -> Work:
    """Random values; on the meta device none."""
    queries = tokens - BEFORE_IMAGE - VISION_TOKENS
    model = _layer(device)
    torch.manual_seed(0)
    with torch.device(device):
        positions = torch.arange(tokens).repeat(samples, 1)
        query_BLD, key_BLD = (torch.randn(samples, tokens, HEADS * HEAD_SIZE, dtype=dtype) for _ in range(2))
        shape = (samples, queries, TEACHER_HEADS, VISION_TOKENS)
        coded = {"": torch.randint(0, 256, shape, dtype=torch.uint8), "scale": torch.rand(shape[:3]).half() / 8}
        adapters = Adapters(heads=(TEACHER_HEADS, HEADS), hidden_sizes=(1, 1))
        lengths_2B = torch.tensor([[queries], [VISION_TOKENS]]).repeat(1, samples)
    targets = AttentionTargets(
        rows_BR=positions[:, -queries:],
        cols_BC=positions[:, BEFORE_IMAGE : BEFORE_IMAGE + VISION_TOKENS],
        num_rows_B=[queries] * samples,
        num_cols_B=[VISION_TOKENS] * samples,
        coded_BRHC=EncodedTensor(codec="sqrt_u8", parts=coded),
        lengths_2B=lengths_2B,
    )
    return Work(
        model=model,
        query_BLD=query_BLD.requires_grad_(),
        key_BLD=key_BLD.requires_grad_(),
        targets=targets,
        adapters=adapters,
        form=form,
    )


def _layer(device: str) -> Any:
    """A decoder of one layer without weights: only its rotary positions and the size of its heads are used."""
    from transformers import LlamaConfig, LlamaModel
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    config = LlamaConfig(
        hidden_size=HEADS * HEAD_SIZE, num_attention_heads=HEADS, num_hidden_layers=1, intermediate_size=8, vocab_size=8
    )
    with torch.device("meta"):
        model = LlamaModel(config)
    model.rotary_emb = LlamaRotaryEmbedding(config=config).to(device)
    return model


def _line(cells: Sequence[Any], markdown: bool) -> str:
    return "| " + " | ".join(map(str, cells)) + " |" if markdown else "".join(f"{cell!s:>20}" for cell in cells)


if __name__ == "__main__":
    main()
