"""One variant of training in its own process: started by train.py, does a step for every line on stdin.

    python benchmarks/train_variant.py CONFIG VARIANT [--cap-gib=GIB] [--no-optimizer]

VARIANT is one of those of train.py. `live` keeps the teacher in the same process and computes its targets in every
step, `--no-optimizer` uses no engine, and `--cap-gib` limits CUDA memory. The package contains none of these variants.
"""

import gc
import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from time import process_time
from typing import Any

import click
import torch
from cases.attention_before import CHUNK_MIB, as_projected
from live_bytes import LiveBytes
from torch import Tensor

from alignkd.pipeline.config.run_config import RunConfig, load_run_config
from alignkd.storage import SampleOrder, StoreReader
from alignkd.student_train.config import TrainConfig
from alignkd.student_train.data.batch import TrainBatch
from alignkd.student_train.data.decode import EncodedTensor
from alignkd.student_train.data.division import Divisions
from alignkd.student_train.data.targets import HiddenTargets
from alignkd.student_train.distributed.ranks import Ranks, start_ranks
from alignkd.student_train.engine.build import build_engine
from alignkd.student_train.engine.engine import Engine, StepOutcome
from alignkd.student_train.losses.loss_sum import LossSum
from alignkd.student_train.objective.counts import GlobalCounts
from alignkd.student_train.objective.objective import DistilledStudent, FrozenHead
from alignkd.student_train.objective.settings import LossConfig
from alignkd.student_train.objective.tally import StepTally
from alignkd.student_train.objective.terms import preset_weights
from alignkd.student_train.run.attention.chosen import attention_match, chosen_attention
from alignkd.student_train.run.checks.target_sources import stem_lookup
from alignkd.student_train.run.plan import micro_batches, open_samples
from alignkd.student_train.run.student import build_student
from alignkd.student_train.trainer import _optimiser_step
from alignkd.vlm.families.mobilevlm.model.mobilevlm import MobileVLM
from alignkd.vlm.families.mobilevlm.weights.checkpoint import load_model
from alignkd.vlm.inputs.batch import ImageTensors

TOP_TOKENS = 16


def in_dtype(images: Sequence[ImageTensors], dtype: torch.dtype) -> list[ImageTensors]:
    """The tensors of images in another dtype."""
    return [{name: values.to(dtype) for name, values in image.items()} for image in images]


class NoOptimizer:
    """An engine that only computes gradients, without master weights, moments and steps."""

    def __init__(self, student: DistilledStudent, config: TrainConfig, *, dtype: torch.dtype, ranks: Ranks) -> None:
        self.student, self.ranks = student.to(ranks.device, dtype), ranks
        self._waiting = 1

    def start_step(self, step: int, *, micro_batches: int) -> None:
        self._waiting = micro_batches

    def __call__(self, batch: TrainBatch) -> dict[str, LossSum]:
        batch = batch.to(self.ranks.device)
        images = in_dtype(batch.sequences.images, self.student.model.dtype)
        terms: dict[str, LossSum] = self.student(replace(batch, sequences=replace(batch.sequences, images=images)))
        return terms

    def backward(self, loss: Tensor) -> None:
        loss.backward()

    def end_micro_batch(self, _: float) -> StepOutcome | None:
        self._waiting -= 1
        if self._waiting:
            return None
        self.student.zero_grad()
        return StepOutcome(applied=True, grad_norm=0.0)


class WithTeacher:
    """An engine that runs the teacher instead of reading the store."""

    def __init__(self, engine: Engine | NoOptimizer, config: RunConfig) -> None:
        assert config.teacher is not None
        dtype = getattr(torch, config.teacher.dtype)
        device = engine.ranks.device
        self.engine = engine
        self.teacher = load_model(config.teacher.checkpoint, dtype=dtype, device=device).requires_grad_(False)
        engine.student.teacher_head = FrozenHead(self.teacher.head)

    def start_step(self, step: int, *, micro_batches: int) -> None:
        self.engine.start_step(step, micro_batches=micro_batches)

    def __call__(self, batch: TrainBatch) -> dict[str, LossSum]:
        return self.engine(live_targets(self.teacher, batch.to(self.engine.ranks.device)))

    def backward(self, loss: Tensor) -> None:
        self.engine.backward(loss)

    def end_micro_batch(self, factor: float) -> StepOutcome | None:
        return self.engine.end_micro_batch(factor)


@torch.no_grad()
def live_targets(teacher: MobileVLM, batch: TrainBatch) -> TrainBatch:
    """The batch with the teacher's targets in place of the stored ones; one image per sample."""
    sequences, attention = batch.sequences, batch.attention
    assert attention is not None
    vision = teacher.encode_images(in_dtype(sequences.images, teacher.dtype))
    embeds_BLD = teacher.embed(sequences, vision)
    hidden_ND = teacher.decoder_states(embeds_BLD).flatten(0, 1)[batch.supervised_N]
    attention_BHRC = teacher.first_layer_attention(
        embeds_BLD, attention.rows_BR, attention.cols_BC, chunk_bytes=256 << 20
    )
    real_BR = torch.arange(attention_BHRC.shape[2], device=embeds_BLD.device) < torch.tensor(
        attention.num_rows_B, device=embeds_BLD.device
    ).unsqueeze(1)
    focus_BC = (attention_BHRC.mean(1) * real_BR[..., None]).sum(1)
    top_IK = focus_BC.argsort(dim=-1, descending=True, stable=True)[:, :TOP_TOKENS]
    num_images, tokens = focus_BC.shape
    top_K = (top_IK + tokens * torch.arange(num_images, device=top_IK.device)[:, None]).flatten()
    return replace(
        batch,
        attention=replace(attention, coded_BRHC=EncodedTensor.plain(attention_BHRC.transpose(1, 2))),
        vision_all_PD=EncodedTensor.plain(vision.embeddings_PD),
        vision_top_index_K=top_K,
        vision_top_embeddings_KD=EncodedTensor.plain(vision.embeddings_PD[top_K]),
        logits=HiddenTargets(states=EncodedTensor.plain(hidden_ND)),
    )


class Training:
    """The trainer's loop, one step at a time, without checkpoints and export."""

    def __init__(self, config: RunConfig, variant: str, *, no_optimizer: bool) -> None:
        self.ranks, job = start_ranks(), config.train_job()
        dataset = open_samples(job, job.open_student())
        job = replace(job, train=job.train.in_steps(len(dataset), self.ranks.world_size))
        self.micro_batches = job.train.accumulation_steps(self.ranks.world_size)
        self.order = SampleOrder(len(dataset), job.train.seed, job.train.global_batch_size(self.ranks.world_size))
        stem = stem_lookup(dataset.reader, job.train)
        reader, sizes = dataset.reader, job.open_student().config
        attention = chosen_attention(reader, attention_match(reader, sizes, job.train))
        self.divisions = Divisions(self.order, dataset.lengths, job.train.micro_batch_limit, self.ranks.world_size)
        self.batches = micro_batches(
            dataset, self.divisions, job.train, self.ranks, first_step=0, stem=stem, attention=attention
        )
        student = build_student(job, job.open_student(), dataset.reader)
        self.student, self.losses = student, job.train.losses
        self.reader = dataset.reader
        self.counts = self._counts(dataset.reader)
        make = NoOptimizer if no_optimizer else build_engine
        engine: Any = make(student, job.train, dtype=job.torch_dtype, ranks=self.ranks)
        self.engine: Any = WithTeacher(engine, config) if variant == "live" else engine
        self.tokens, self.number = dataset.reader.sequence_lengths, 0

    def step(self) -> dict[str, Any]:
        """Do one optimiser step and return its figures."""
        positions = self.order.global_batch_indices(self.number)
        tally, started = StepTally(self.losses.weights, self.counts(positions)), process_time()
        self.engine.start_step(self.number, micro_batches=len(self.divisions.of_step(self.number)))
        _optimiser_step(self.engine, self.batches, tally, 1.0)
        tally.gather(self.ranks, stop=False)
        self.number += 1
        return {
            "seconds": tally.seconds,
            "cpu_seconds": process_time() - started,
            "wait_share": tally.wait_share,
            "tokens": int(self.tokens[positions].sum()),
        }

    def plain(self) -> dict[str, Any]:
        """Do a step of plain fine-tuning in this process, with the same memory as `step`."""
        losses, stem = self.losses, self.student.stem
        self.losses = self.student.losses = LossConfig(**preset_weights("supervised"))
        counts, self.counts, self.student.stem = self.counts, self._counts(self.reader), None
        try:
            return self.step()
        finally:
            self.losses = self.student.losses = losses
            self.counts, self.student.stem = counts, stem

    def before(self) -> dict[str, Any]:
        """Do a step with the attention loss as it was (`cases/attention_before.py`), in this process."""
        losses = self.losses
        self.losses = self.student.losses = losses.model_copy(update={"attention_chunk_mib": CHUNK_MIB})
        try:
            with as_projected():
                return self.step()
        finally:
            self.losses = self.student.losses = losses

    def _counts(self, reader: StoreReader) -> GlobalCounts:
        model, weights = self.student.model.config, self.losses.weights
        return GlobalCounts([reader], model, weights, self.student.attention)

    def memory(self) -> dict[str, Any]:
        """Device memory in MiB: between steps, and the peak during a step."""
        if torch.cuda.is_available():
            held = torch.cuda.memory_allocated()
            torch.cuda.reset_peak_memory_stats()
            self.step()
            return {"held": held / 2**20, "peak": torch.cuda.max_memory_allocated() / 2**20}
        with all_live_bytes() as live:
            held = live.now
            self.step()
        return {"held": held / 2**20, "peak": live.peak / 2**20}


@contextmanager
def all_live_bytes() -> Iterator[LiveBytes]:
    """Also count existing tensors: weights, optimiser state and, with `live`, the teacher."""
    there = [value for value in gc.get_objects() if issubclass(type(value), Tensor)]
    size = sum({t.untyped_storage()._cdata: t.untyped_storage().nbytes() for t in there}.values())
    del there
    with LiveBytes() as live:
        live.now = live.peak = size
        yield live


@click.command()
@click.argument("config", type=click.Path(path_type=Path))
@click.argument("variant")
@click.option("--cap-gib", type=float)
@click.option("--no-optimizer", is_flag=True)
def main(config: Path, variant: str, cap_gib: float | None, no_optimizer: bool) -> None:
    """Answer the commands `step`, `plain`, `before` and `memory`."""
    if cap_gib and torch.cuda.is_available():
        torch.cuda.set_per_process_memory_fraction(cap_gib * 2**30 / torch.cuda.mem_get_info()[1])
    training = Training(load_run_config(config, "train"), variant, no_optimizer=no_optimizer)
    answers = {"step": training.step, "plain": training.plain, "before": training.before, "memory": training.memory}
    print(json.dumps({"ready": variant}), flush=True)
    for line in sys.stdin:
        print(json.dumps(answers[line.strip()]()), flush=True)


if __name__ == "__main__":
    main()
