"""Training from cached targets is training beside the live teacher, whatever the family."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from alignkd.storage import SampleOrder
from alignkd.student_train.data.batch import TrainBatch
from alignkd.student_train.data.collate import collate
from alignkd.student_train.data.decode import EncodedTensor
from alignkd.student_train.data.targets import FullTargets
from alignkd.student_train.distributed.ranks import start_ranks
from alignkd.student_train.engine.build import build_engine
from alignkd.student_train.job import TrainJob
from alignkd.student_train.objective.counts import GlobalCounts
from alignkd.student_train.objective.settings import LossConfig
from alignkd.student_train.objective.tally import StepTally
from alignkd.student_train.run.attention.chosen import attention_match, chosen_attention
from alignkd.student_train.run.plan import open_samples
from alignkd.student_train.run.student import build_student
from alignkd.vlm.families.family import VisionLanguageModel
from alignkd.vlm.families.open import open_checkpoint

STEPS = 3
TEACHER = {"seed": 3, "hidden_size": 64, "heads": 4}
STUDENT = {"seed": 4, "hidden_size": 32, "heads": 2}


@torch.no_grad()
def live_targets(teacher: VisionLanguageModel, batch: TrainBatch) -> TrainBatch:
    """The batch with targets from one padded forward pass of the teacher; nothing cached is left in it."""
    sequences, attention = batch.sequences, batch.attention
    vision = None
    if sequences.images:
        vision = teacher.encode_images(sequences.images, sequences.image_samples_I.tolist())
    with teacher.watched_first_layer() as first_layer:
        hidden_BLD = teacher.hidden_states(sequences, vision)
    logits_NV = teacher.head(hidden_BLD.flatten(0, 1)[batch.supervised_N])
    live = replace(batch, logits=FullTargets(logits=EncodedTensor.plain(logits_NV)))
    if vision is None or attention is None:
        return live
    attention_BHRC = first_layer.attention(attention.rows_BR, attention.cols_BC)
    top, start = [], 0
    for row, (rows, cols) in enumerate(zip(attention.num_rows_B, attention.num_cols_B, strict=True)):
        if cols:
            scores_C = attention_BHRC[row, :, :rows, :cols].mean(0).sum(0)
            top.append(start + scores_C.argsort(descending=True, stable=True)[:16])
            start += cols
    top_K: Tensor = torch.cat(top)
    return replace(
        live,
        attention=replace(attention, coded_BRHC=EncodedTensor.plain(attention_BHRC.transpose(1, 2))),
        vision_all_PD=EncodedTensor.plain(vision.embeddings_PD),
        vision_top_index_K=top_K,
        vision_top_embeddings_KD=EncodedTensor.plain(vision.embeddings_PD[top_K]),
    )


def run(job: TrainJob, prepare: Callable[[TrainBatch], TrainBatch]) -> list[dict[str, float]]:
    """Loss terms of STEPS optimiser steps."""
    ranks, checkpoint = start_ranks(), job.open_student()
    dataset = open_samples(job, checkpoint)
    student = build_student(job, checkpoint, dataset.reader)
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


@pytest.mark.parametrize("name", ["qwen3_vl", "gemma3", "smolvlm"])
def test_every_term_at_every_step(name: str, family_job: Callable[..., TrainJob], checkpoint: Any) -> None:
    job = family_job(name, micro_batch=4, learning_rate=1e-3)
    teacher = open_checkpoint(Path(checkpoint(name, **TEACHER))).load_model()
    offline, online = run(job, lambda batch: batch), run(job, lambda batch: live_targets(teacher, batch))
    for step, (cached, live) in enumerate(zip(offline, online, strict=True)):
        assert cached == pytest.approx(live, rel=1e-5), step
    # the agreement means something only if the student moved between the steps
    assert all(abs(offline[0][term] / offline[-1][term] - 1) > 1e-3 for term in LossConfig().weights)


@pytest.mark.parametrize(("name", "layers"), [("qwen3_vl", (0, 1)), ("gemma3", (0, 1)), ("lfm2_vl", (2, 5))])
def test_attention_of_any_layers(
    name: str,
    layers: tuple[int, int],
    family_job: Callable[..., TrainJob],
    family_store: Callable[..., Path],
    checkpoint: Any,
) -> None:
    """Two layers, one of them a sliding window or in a hybrid of convolutions; rows of text and of vision tokens."""
    deep = {"num_layers": max(layers) + 1}
    kept = {"layers": list(layers), "pairs": "all", "codec": "float32"}
    store = family_store(name, deep, attention=kept, vision_top="none", vision_all="none")
    student = Path(checkpoint(name, **STUDENT, **deep))
    teacher = open_checkpoint(Path(checkpoint(name, **TEACHER, **deep))).load_model()
    own = {layers[0]: layers, layers[1]: layers[1]}
    losses = {"attention_layers": own, **dict.fromkeys(("logit", "vision_top", "vision_all"), 0.0)}
    job = family_job(name, store=store, student=student, micro_batch=4, losses=losses)
    samples = open_samples(job, job.open_student())
    module = build_student(job, job.open_student(), samples.reader)
    match = attention_match(samples.reader, module.model.config, job.train)
    batch = collate(
        [samples[number] for number in range(8)],
        targets=["attention"],
        attention_pairs=chosen_attention(samples.reader, match),
    )
    places, sequences = batch.attention, batch.sequences
    assert places is not None
    with torch.no_grad(), teacher.watched_layers(layers) as watched:
        vision = teacher.encode_images(sequences.images, sequences.image_samples_I.tolist())
        teacher.hidden_states(sequences, vision)
        maps = [watched[number].attention(places.rows_BR, places.cols_BC, places.samples_B) for number in layers]
    live_BHRC = torch.cat(maps, dim=1)
    live = replace(places, coded_BRHC=EncodedTensor.plain(live_BHRC.transpose(1, 2)))
    terms = [module(replace(batch, attention=attention))["attention"] for attention in (places, live)]
    assert (
        terms[0].count
        == terms[1].count
        == GlobalCounts([samples.reader], module.model.config, ["attention"], match)(np.arange(8))["attention"]
    )
    assert terms[0].total.item() == pytest.approx(terms[1].total.item(), rel=1e-5)
    assert terms[0].total.item() > 0
