"""The point of the whole: training from cached targets is training beside the live teacher."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from alignkd.storage import SampleOrder
from alignkd.student_train.data.batch import TrainBatch
from alignkd.student_train.data.collate import collate
from alignkd.student_train.data.decode import EncodedTensor
from alignkd.student_train.data.samples.dataset import CachedDataset
from alignkd.student_train.data.targets import FullTargets
from alignkd.student_train.distributed.ranks import start_ranks
from alignkd.student_train.engine.build import build_engine
from alignkd.student_train.job import TrainJob
from alignkd.student_train.objective.counts import GlobalCounts
from alignkd.student_train.objective.settings import LossConfig
from alignkd.student_train.objective.tally import StepTally
from alignkd.student_train.run.plan import open_samples
from alignkd.student_train.run.student import build_student
from alignkd.vlm.families.mobilevlm.model.mobilevlm import MobileVLM

STEPS = 6


@torch.no_grad()
def live_targets(teacher: MobileVLM, batch: TrainBatch) -> TrainBatch:
    """The batch with targets from one padded forward pass of the teacher; nothing cached is left in it."""
    sequences, attention = batch.sequences, batch.attention
    vision = teacher.encode_images(sequences.images) if sequences.images else None
    embeds_BLD = teacher.embed(sequences, vision)
    hidden_BLD = teacher.hidden_states(sequences, vision)
    logits_NV = teacher.lm_head(hidden_BLD.flatten(0, 1)[batch.supervised_N])
    live_logits = FullTargets(logits=EncodedTensor.plain(logits_NV))
    if vision is None or attention is None:
        return replace(batch, logits=live_logits)
    attention_BHRC = teacher.first_layer_attention(embeds_BLD, attention.rows_BR, attention.cols_BC)
    top_K = torch.cat(
        [
            144 * image  # one image in each sample that has any
            + attention_BHRC[row, :, : attention.num_rows_B[row]]
            .mean(0)
            .sum(0)
            .argsort(descending=True, stable=True)[:16]
            for image, row in enumerate(sequences.image_samples_I.tolist())
        ]
    )
    return replace(
        batch,
        attention=replace(attention, coded_BRHC=EncodedTensor.plain(attention_BHRC.transpose(1, 2))),
        vision_all_PD=EncodedTensor.plain(vision.embeddings_PD),
        vision_top_index_K=top_K,
        vision_top_embeddings_KD=EncodedTensor.plain(vision.embeddings_PD[top_K]),
        logits=live_logits,
    )


def run(job: TrainJob, dataset: CachedDataset, prepare: Callable[[TrainBatch], TrainBatch]) -> list[dict[str, float]]:
    """Loss terms of STEPS optimiser steps."""
    ranks = start_ranks()
    student = build_student(job, job.open_student(), dataset.reader)
    counts = GlobalCounts([dataset.reader], student.model.config, LossConfig().weights)
    engine = build_engine(student, job.train, dtype=torch.float32, ranks=ranks)
    order = SampleOrder(len(dataset), seed=0, global_batch=job.train.micro_batch)
    lines = []
    for step in range(STEPS):
        positions = order.global_batch_indices(step)
        tally = StepTally(job.train.losses.weights, counts(positions))
        batch = collate(
            [dataset[int(i)] for i in positions], targets=LossConfig().needed_targets.values(), attention_pairs="tqv"
        )
        engine.backward(tally.add(engine(prepare(batch))))
        engine.end_micro_batch(1.0)
        tally.gather(ranks, stop=False)
        lines.append({name: mean for name, mean in tally.means.items() if mean is not None})
    return lines


def test_every_term_at_every_step(many_store: Path, make_job: Callable[..., TrainJob], teacher: MobileVLM) -> None:
    job = make_job(many_store, micro_batch=4, learning_rate=1e-4)
    dataset = open_samples(job, job.open_student())
    offline = run(job, dataset, lambda batch: batch)
    online = run(job, dataset, lambda batch: live_targets(teacher, batch))
    for step, (cached, live) in enumerate(zip(offline, online, strict=True)):
        assert cached == pytest.approx(live, rel=1e-6), step
    # The agreement means something only if the student moved between the steps.
    assert all(abs(offline[0][term] / offline[-1][term] - 1) > 1e-3 for term in LossConfig().weights)
