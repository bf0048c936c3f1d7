"""LoRA in students of transformers: gradients, the merged student, and the adapter that peft loads."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny_families
import torch
from chosen_families import chosen
from safetensors.torch import load_file
from torch import Tensor
from trained_choices import arrivals, chosen_job, opened, places_by_kind, randomised, trained_names

from alignkd.student_train import trainer
from alignkd.student_train.data.samples.dataset import CachedDataset
from alignkd.student_train.job import TrainJob
from alignkd.student_train.run.plan import open_samples
from alignkd.student_train.trained.counts import trained_counts
from alignkd.student_train.trained.settings import TrainedConfig
from alignkd.student_train.trainer import train
from alignkd.vlm.families.family import VisionLanguageModel
from alignkd.vlm.families.open import open_checkpoint
from alignkd.vlm.inputs.batch import collate_sequences

FamilyJob = Callable[..., TrainJob]
LORA: dict[str, Any] = {"lora": {"rank": 4, "alpha": 6.0}}
# the projector is a part of the tower, with a list of modules; a projector of its own
WITH_TEMPLATE = chosen(
    [name for name in tiny_families.FAMILIES if name != "paligemma"], lambda name: name in ("qwen3_vl", "glm4v")
)
EXPORTED = chosen(tiny_families.NINE, lambda name: name in ("qwen3_vl", "gemma3"))


@torch.no_grad()
def logits_of(model: VisionLanguageModel, dataset: CachedDataset) -> list[Tensor]:
    """Logits at the supervised positions of each sample."""
    found = []
    for place in range(len(dataset)):
        batch = collate_sequences([dataset[place][0]])
        vision = model.encode_images(batch.images, batch.image_samples_I.tolist()) if batch.images else None
        found.append(model.head(model.hidden_states(batch, vision)[batch.supervised_mask_BL]))
    return found


def assert_same(found: list[Tensor], expected: list[Tensor]) -> None:
    for own, reference in zip(found, expected, strict=True):
        scale = float(reference.abs().max())
        torch.testing.assert_close(own / scale, reference / scale, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", WITH_TEMPLATE)
@pytest.mark.parametrize("choice", ["lora", "lora-keys", "layers", "decoder"])
def test_gradients_arrive_in_one_order(name: str, choice: str, family_job: FamilyJob) -> None:
    job = chosen_job(family_job(name), choice)
    dataset, student = opened(job)
    randomised(student)
    with_images, without = places_by_kind(dataset)
    found, alone = arrivals(dataset, student, with_images[:2]), arrivals(dataset, student, without[:2])
    assert [*found] == [*alone]
    assert {*found} == trained_names(student)
    trained = sum(value.numel() for value in student.model.parameters() if value.requires_grad)
    assert trained_counts(job.trained, job.open_student().size()).trained == trained


@pytest.mark.parametrize("name", EXPORTED)
def test_merged_unmerged_and_peft_are_the_same(
    name: str, family_job: FamilyJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    from peft import PeftModel

    job = replace(family_job(name, steps=3, micro_batch=5, learning_rate=5e-3), trained=TrainedConfig(**LORA))
    dataset = open_samples(job, job.open_student())
    unmerged: list[Tensor] = []
    write = trainer.export

    def export(job: Any, checkpoint: Any, engine: Any, *more: Any, **options: Any) -> None:
        unmerged.extend(logits_of(engine.student.model, dataset))
        write(job, checkpoint, engine, *more, **options)

    monkeypatch.setattr(trainer, "export", export)
    result = train(job)
    assert result.student is not None
    before = logits_of(job.open_student().load_model(), dataset)
    assert max(float((a - b).abs().max()) for a, b in zip(unmerged, before, strict=True)) > 1e-2
    assert_same(logits_of(open_checkpoint(result.student).load_model(), dataset), unmerged)
    # the adapter on the model that training started from, by peft itself
    base = open_checkpoint(job.student).load_model()
    base.model = PeftModel.from_pretrained(base.model, job.train.output / "lora").base_model.model
    for prefix in (prefix for prefix in base.projector_prefixes if not prefix.endswith(".")):
        # no module, which is why peft cannot save it
        trained = open_checkpoint(result.student).load_model().get_parameter(prefix)
        base.get_parameter(prefix).data.copy_(trained.data)
    assert_same(logits_of(base, dataset), unmerged)


@pytest.mark.parametrize(("kind", "dtype"), [("nf4", "float32"), ("int8", "bfloat16")])
def test_quantised_weights_are_merged_into_the_original_ones(
    kind: Any, dtype: Any, family_job: FamilyJob, checkpoint: Callable[..., Path]
) -> None:
    """A student wide enough for quantisation; the second layer is quantised, the first one is not."""
    pytest.importorskip("bitsandbytes")
    student = checkpoint("qwen3_vl", seed=4, hidden_size=64, heads=4)
    job = family_job("qwen3_vl", student=student, steps=2, learning_rate=5e-3, gradient_checkpointing=True)
    job = replace(job, dtype=dtype, trained=TrainedConfig(**LORA, quantization=kind))
    result = train(job)
    assert result.student is not None and result.skipped_steps == 0
    before, after = (load_file(folder / "model.safetensors") for folder in (student, result.student))
    lora = load_file(job.train.output / "lora" / "adapter_model.safetensors")
    assert before.keys() == after.keys()
    merged, real = 0, getattr(torch, dtype)
    for name, value in before.items():
        path = f"base_model.model.{name.removesuffix('.weight')}.lora_"
        if f"{path}A.weight" in lora:
            expected = value.to(real).float() + 6 / 4 * (lora[f"{path}B.weight"] @ lora[f"{path}A.weight"])
            torch.testing.assert_close(after[name], expected.to(real), rtol=0, atol=1e-6)
            merged += 1
        elif "merger" not in name:
            assert torch.equal(after[name], value.to(real)), name
    assert merged == len(job.open_student().size().linear_layers)
