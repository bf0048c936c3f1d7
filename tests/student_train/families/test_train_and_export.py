"""Students of all families are trained with every loss; transformers alone loads what is written and computes alike."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import reference_vlm
import tiny_data
import tiny_families
import torch

from alignkd.student_train import trainer
from alignkd.student_train.data.samples.dataset import CachedDataset
from alignkd.student_train.job import TrainJob
from alignkd.student_train.objective.settings import LossConfig
from alignkd.student_train.run.plan import open_samples
from alignkd.student_train.trainer import train
from alignkd.vlm.families.family import VisionLanguageModel
from alignkd.vlm.inputs.batch import collate_sequences

STEPS = 8
ReadMetrics = Callable[[Path], list[dict[str, Any]]]


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> Callable[[], VisionLanguageModel]:
    """The model in the memory of the training process when it is exported."""
    found: list[VisionLanguageModel] = []
    write = trainer.export

    def export(job: Any, checkpoint: Any, engine: Any, *more: Any, **options: Any) -> None:
        found.append(engine.student.model)
        write(job, checkpoint, engine, *more, **options)

    monkeypatch.setattr(trainer, "export", export)
    return lambda: found[0]


@pytest.mark.parametrize("name", tiny_families.NINE)
def test_steps_with_every_loss(
    name: str,
    family_job: Callable[..., TrainJob],
    trained: Callable[[], VisionLanguageModel],
    read_metrics: ReadMetrics,
    data: tiny_data.TinyData,
) -> None:
    job = family_job(name, steps=STEPS, micro_batch=5, global_batch=10, learning_rate=2e-3)
    dataset = open_samples(job, job.open_student())
    result = train(job)
    lines = read_metrics(job.train.output)
    assert len(lines) == STEPS and {*job.train.losses.weights} == {*LossConfig().weights}
    for term in LossConfig().weights:
        assert lines[-1][term] < lines[0][term], term
    assert result.samples_by_kind["several_images"] and result.samples_by_kind["text_only"]
    assert result.student is not None
    check_written(trained(), dataset, result.student, data)


@torch.no_grad()
def check_written(model: VisionLanguageModel, dataset: CachedDataset, student: Path, data: tiny_data.TinyData) -> None:
    """Logits of every sample: of the trained model, and by transformers' own forward pass from the files alone."""
    samples = reference_vlm.from_file(data.conversations, data.images, None)
    reference, _ = reference_vlm.values_of(student, samples)
    for place in range(len(dataset)):
        example, record = dataset[place]
        batch = collate_sequences([example])
        vision = model.encode_images(batch.images, batch.image_samples_I.tolist()) if batch.images else None
        hidden_LD = model.hidden_states(batch, vision)[0]
        found_NV = model.head(hidden_LD[torch.from_numpy(example.positions.supervised_positions).long()])
        expected_NV = reference[f"{record.index}.logits"]
        scale = np.abs(expected_NV).max()
        assert found_NV.shape == expected_NV.shape
        np.testing.assert_allclose(found_NV.numpy() / scale, expected_NV / scale, atol=1e-5)


@pytest.mark.parametrize("name", ["gemma3", "qwen2_5_vl"])
def test_in_bfloat16_with_everything_that_saves_memory(
    name: str, family_job: Callable[..., TrainJob], read_metrics: ReadMetrics
) -> None:
    """Offloaded, checkpointed, in 16 bits; buffers of positions keep float32, and losses are near those in float32."""
    settings: dict[str, Any] = {"steps": 2, "micro_batch": 5, "global_batch": 10}
    exact = family_job(name, **settings)
    train(exact)
    lines = {"float32": read_metrics(exact.train.output)}
    job = replace(
        family_job(
            name,
            output=exact.train.output.with_name("half"),
            gradient_checkpointing=True,
            optimizer="adamw_offload",
            **settings,
        ),
        dtype="bfloat16",
    )
    train(job)
    lines["bfloat16"] = read_metrics(job.train.output)
    for half, line in zip(lines["bfloat16"], lines["float32"], strict=True):
        assert not half["skipped"]
        assert {term: half[term] for term in LossConfig().weights} == pytest.approx(
            {term: line[term] for term in LossConfig().weights}, rel=0.1
        )
