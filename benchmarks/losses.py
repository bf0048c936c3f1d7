"""Cross-entropy and logit loss fused with the output head, against full logits: time and peak memory.

    python benchmarks/losses.py [--positions 512 --positions 4096] [--kind hidden] [--divergence all] [--rounds 3]

`--divergence all` measures every divergence that accepts the kind; `topk` with the settings that it needs.

The peak is the memory that torch allocates between the student's states and their gradients, in addition to states,
heads and stored targets: on CUDA the allocator's own figure, on a CPU the sum of all living storages, counted by a
dispatch mode. Both ways are measured in turn in one run.
"""

import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import click
import torch
from cases.measuring import machine
from live_bytes import LiveBytes
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from alignkd.student_train.losses.fused_head import HeadTerm, WeightedTerm, fused_head_losses
from alignkd.student_train.losses.logits.logit_loss import logit_loss, teacher_logits
from alignkd.student_train.losses.logits.truncated_distribution import TruncatedDistribution
from alignkd.student_train.losses.loss_sum import LossSum
from alignkd.student_train.losses.position_groups import chunks_of_groups, groups_in, position_groups
from alignkd.student_train.losses.supervised import supervised_loss
from alignkd.student_train.objective.logits.divergence_table import DIVERGENCES
from alignkd.student_train.objective.settings import LossConfig
from alignkd.vlm.families.family import Head

TOP_K = 64
# Supervised positions of a sample: what divergences that compare positions are given.
OF_SAMPLE = 128
# Settings without which a divergence refuses `topk`.
FOR_TOPK: dict[str, dict[str, Any]] = {
    "bild": {"bild": {"lead": "teacher"}},
    "sinkhorn": {"sinkhorn": {"temperature": 1.0}},
}


@dataclass(frozen=True, kw_only=True)
class Work:
    """Inputs of one step, and both ways from states to gradients."""

    hidden_ND: Tensor
    head_VD: Tensor
    labels_N: Tensor
    fused_term: HeadTerm
    plain_term: Callable[[Tensor], Tensor]
    groups: tuple[int, ...]
    chunk_bytes: int

    def fused(self) -> None:
        """The way of the objective."""
        terms: list[HeadTerm] = [lambda x, part: supervised_loss(x, self.labels_N[part]).parts, self.fused_term]
        weighted = [WeightedTerm(term=term, weight=1.0) for term in terms]
        head = Head(weight_VD=self.head_VD)
        losses = fused_head_losses(self.hidden_ND, head, weighted, chunk_bytes=self.chunk_bytes, groups=self.groups)
        self._backward(torch.stack([loss.total for loss in losses]).sum())

    def plain(self) -> None:
        """With [N, V] logits; stored hidden states are still used in chunks."""
        logits_NV = self.hidden_ND @ self.head_VD.T
        self._backward(supervised_loss(logits_NV, self.labels_N).total + self.plain_term(logits_NV))

    def _backward(self, total: Tensor) -> None:
        torch.autograd.grad(total / len(self.hidden_ND), (self.hidden_ND, self.head_VD))


@click.command()
@click.option("--positions", type=int, multiple=True, default=(512, 1024, 2048, 4096), show_default=True, help="N.")
@click.option("--kind", type=click.Choice(["hidden", "topk"]), multiple=True, default=("hidden", "topk"))
@click.option(
    "--divergence", type=click.Choice(["all", *DIVERGENCES]), multiple=True, default=("reverse_kl",), show_default=True
)
@click.option("--vocabulary", default=32000, show_default=True, help="V.")
@click.option("--hidden-size", default=2048, show_default=True, help="D, of student and teacher.")
@click.option("--chunk-mib", default=64, show_default=True, help="losses.head_chunk_mib.")
@click.option("--rounds", default=3, show_default=True, help="Seconds are medians of these.")
@click.option("--dtype", type=click.Choice(["float32", "bfloat16", "float16"]), default="float32", show_default=True)
@click.option("--markdown", is_flag=True, help="A table for docs/benchmarks.md.")
def main(
    positions: tuple[int, ...],
    kind: tuple[str, ...],
    divergence: tuple[str, ...],
    vocabulary: int,
    hidden_size: int,
    chunk_mib: int,
    rounds: int,
    dtype: str,
    markdown: bool,
) -> None:
    """Measure seconds and peak MiB of forward and backward pass, fused and plain.

    Example: python benchmarks/losses.py --positions 512 --kind topk --rounds 1
    """
    print(f"{' '.join(['python benchmarks/losses.py', *sys.argv[1:]])}\n\n{machine()}\n", flush=True)
    names = ("divergence", "kind", "N", "plain s", "fused s", "ratio", "plain MiB", "fused MiB", "ratio")
    print(_line(names, markdown) + ("\n" + _line(["---"] * len(names), markdown) if markdown else ""), flush=True)
    for losses, name in _chosen([*DIVERGENCES] if "all" in divergence else divergence, kind):
        for num in positions:
            work = _work(name, num, vocabulary, hidden_size, losses, getattr(torch, dtype), chunk_mib << 20)
            plain, fused = (_peak_mib(way) for way in (work.plain, work.fused))
            times = [(_seconds(work.plain), _seconds(work.fused)) for _ in range(rounds)]
            plain_s, fused_s = (statistics.median(column) for column in zip(*times, strict=True))
            cells = [losses.logit_divergence, name, num, f"{plain_s:.2f}", f"{fused_s:.2f}", f"{fused_s / plain_s:.2f}"]
            cells += [f"{plain:.0f}", f"{fused:.0f}", f"{fused / plain:.2f}"]
            print(_line(cells, markdown), flush=True)


def _chosen(divergences: Sequence[str], kinds: Sequence[str]) -> list[tuple[LossConfig, str]]:
    """The divergences with their settings, and the kinds of stored logits that accept them."""
    found = []
    for kind in kinds:
        for name in divergences:
            settings: Any = FOR_TOPK.get(name, {}) if kind == "topk" else {}
            losses = LossConfig(**{"logit_divergence": name, **settings})
            if not losses.problems_with(kind, "the benchmark"):
                found.append((losses, kind))
    return found


def _work(
    kind: str, num: int, vocabulary: int, width: int, losses: LossConfig, dtype: torch.dtype, chunk_bytes: int
) -> Work:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    generator = torch.Generator(device).manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, device=device).to(dtype)

    hidden_ND, states_ND = normal(num, width), normal(num, width)
    head_VD, teacher_VD = (normal(vocabulary, width) * width**-0.5 for _ in range(2))
    labels_N = torch.randint(vocabulary, (num,), generator=generator, device=device)
    divergence = losses.divergence
    groups: tuple[int, ...] = ()
    if divergence.group_positions is not None:
        samples = [OF_SAMPLE] * (num // OF_SAMPLE) + [num % OF_SAMPLE]
        groups = position_groups(samples, divergence.group_positions)
    sparse = _truncated(states_ND, teacher_VD) if kind == "topk" else None

    def loss_of(logits_nV: Tensor, teacher: Tensor | TruncatedDistribution, part: slice) -> LossSum:
        own = groups_in(groups, part) if groups else ()
        return logit_loss(logits_nV, teacher, divergence=divergence, labels_N=labels_N[part], groups=own)

    def fused_term(logits_nV: Tensor, part: slice) -> Tensor:
        teacher = teacher_logits(states_ND[part], Head(weight_VD=teacher_VD)) if sparse is None else sparse[part]
        return loss_of(logits_nV, teacher, part).parts

    def plain_term(logits_NV: Tensor) -> Tensor:
        if sparse is not None:
            return loss_of(logits_NV, sparse, slice(0, num)).total
        parts = chunks_of_groups(groups or [1] * num, 256)
        return _hidden_loss(logits_NV, states_ND, teacher_VD, parts, loss_of)

    return Work(
        hidden_ND=hidden_ND.requires_grad_(),
        head_VD=head_VD.requires_grad_(),
        labels_N=labels_N,
        fused_term=fused_term,
        plain_term=plain_term,
        groups=groups,
        chunk_bytes=chunk_bytes,
    )


def _hidden_loss(
    logits_NV: Tensor, states_ND: Tensor, head_VD: Tensor, chunks: Sequence[slice], loss_of: Callable[..., LossSum]
) -> Tensor:
    """Compute the teacher's logits in chunks, and again for the backward pass: only the student's are kept."""

    def part(logits_nV: Tensor, states_nD: Tensor, chunk: slice) -> Tensor:
        return loss_of(logits_nV, teacher_logits(states_nD, Head(weight_VD=head_VD)), chunk).total

    losses = [checkpoint(part, logits_NV[own], states_ND[own], own, use_reentrant=False) for own in chunks]
    return torch.stack(losses).sum()


def _truncated(states_ND: Tensor, head_VD: Tensor) -> TruncatedDistribution:
    parts = []
    for states_nD in states_ND.split(256):
        sorted_nV, order_nV = (
            teacher_logits(states_nD, Head(weight_VD=head_VD)).float().log_softmax(-1).sort(descending=True)
        )
        parts.append((order_nV[:, :TOP_K].clone(), sorted_nV[:, :TOP_K].clone(), sorted_nV[:, TOP_K:].logsumexp(-1)))
    ids_NK, logprobs_NK, tail_N = (torch.cat(column) for column in zip(*parts, strict=True))
    kept_NK = torch.ones_like(ids_NK, dtype=torch.bool)
    return TruncatedDistribution(ids_NK=ids_NK, logprobs_NK=logprobs_NK, kept_NK=kept_NK, tail_logmass_N=tail_N)


def _seconds(work: Callable[[], None]) -> float:
    started = time.perf_counter()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - started


def _peak_mib(work: Callable[[], None]) -> float:
    if torch.cuda.is_available():
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        work()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    with LiveBytes() as live:
        work()
    return live.peak / 2**20


def _line(cells: Any, markdown: bool) -> str:
    first, *others = map(str, cells)
    return f"| {' | '.join([first, *others])} |" if markdown else f"{first:>18}" + "".join(f"{x:>11}" for x in others)


if __name__ == "__main__":
    main()
