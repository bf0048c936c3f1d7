"""Choices of what is trained, and what a backward pass of a student does with them."""

from dataclasses import replace
from typing import Any, Final

import torch
from torch import Tensor, nn

from alignkd.student_train.data.collate import collate
from alignkd.student_train.data.samples.training_set import TrainingSet
from alignkd.student_train.job import TrainJob
from alignkd.student_train.objective.objective import DistilledStudent, weighted_total
from alignkd.student_train.objective.terms import TERMS
from alignkd.student_train.run.plan import open_samples
from alignkd.student_train.run.student import build_student
from alignkd.student_train.trained.checks import check_trained
from alignkd.student_train.trained.settings import TrainedConfig

# What only the projector changes is not compared where it is not trained.
NO_VISION: Final = {"vision_all": 0.0, "vision_top": 0.0}
CHOICES: Final[dict[str, tuple[dict[str, Any], dict[str, float]]]] = {
    "all": ({}, {}),
    "projector": ({"trained": "projector"}, {}),
    "decoder": ({"trained": "decoder"}, NO_VISION),
    "layers": ({"trained": {"layers": [1, 1]}}, {**NO_VISION, "attention": 0.0}),
    "first-layer": ({"trained": {"layers": [0, 0]}}, NO_VISION),
    "layers-and-projector": ({"trained": {"layers": [1, 1], "projector": True}}, {}),
    "lora": ({"trained": "lora"}, {}),
    "lora-alone": ({"lora": {"rank": 4, "projector": False}}, NO_VISION),
    "lora-keys": ({"lora": {"rank": 3, "targets": ["k_proj"], "projector": False}}, NO_VISION),
    "lora-regex": ({"lora": {"rank": 2, "targets": r"layers\.1\.mlp\..*"}}, {}),
}
"""Name -> keys of `student`, keys of `train.losses`."""


def chosen_job(job: TrainJob, choice: str) -> TrainJob:
    """A job of the same data that trains a choice."""
    student, losses = CHOICES[choice]
    config = job.train.losses.model_copy(update=losses)
    return replace(job, trained=TrainedConfig(**student), train=job.train.model_copy(update={"losses": config}))


def opened(job: TrainJob) -> tuple[TrainingSet, DistilledStudent]:
    """The samples and the student of a job, after its checks."""
    checkpoint = job.open_student()
    check_trained(job.trained, checkpoint, job.train.losses.weights)
    dataset = open_samples(job, checkpoint)
    return dataset, build_student(job, checkpoint, dataset.reader)


def places_by_kind(dataset: TrainingSet) -> tuple[list[int], list[int]]:
    """Positions of samples with images, and of those without."""
    has_image = dataset.reader.has_image.tolist()
    places = range(len(dataset))
    return [p for p in places if has_image[p]], [p for p in places if not has_image[p]]


def arrivals(dataset: TrainingSet, student: DistilledStudent, places: list[int]) -> dict[str, Tensor]:
    """Gradients of one backward pass by name, in the order in which they arrive."""
    found: dict[str, Tensor] = {}

    def noting(name: str) -> Any:
        def note(parameter: Tensor) -> None:
            assert parameter.grad is not None
            found[name] = parameter.grad.clone()

        return note

    trained = [(name, value) for name, value in student.named_parameters() if value.requires_grad]
    hooks = [value.register_post_accumulate_grad_hook(noting(name)) for name, value in trained]
    batch = collate(
        [dataset[place] for place in places],
        targets=student.losses.needed_targets.values(),
        attention_pairs=dataset.reader.manifest.codecs.attention_pairs,
    )
    student.zero_grad(set_to_none=True)
    weighted_total(student(batch), student.losses.weights, dict.fromkeys(TERMS, 1)).backward()
    for hook in hooks:
        hook.remove()
    return found


def trained_names(module: nn.Module) -> set[str]:
    """Names of trained parameters."""
    return {name for name, value in module.named_parameters() if value.requires_grad}


def randomised(student: DistilledStudent) -> None:
    """LoRA away from its start, at which the second matrix is 0 and the first one has no gradient."""
    generator = torch.Generator().manual_seed(5)
    for name, value in student.named_parameters():
        if "lora_B" in name:
            value.data.copy_(0.05 * torch.randn(value.shape, generator=generator))
