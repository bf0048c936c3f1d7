"""Each choice of what is trained, for MobileVLM: gradients, steps, counts and the exported student."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from trained_choices import CHOICES, arrivals, chosen_job, opened, places_by_kind, randomised, trained_names

from alignkd.student_train.job import TrainJob
from alignkd.student_train.trained.counts import trained_counts
from alignkd.student_train.trained.settings import TrainedConfig
from alignkd.student_train.trainer import train
from alignkd.vlm.families.mobilevlm.weights.checkpoint import load_model

MakeJob = Callable[..., TrainJob]
PROJECTOR, TOWER = "model.mm_projector.", "model.vision_tower."


def is_expected(choice: str, name: str) -> bool:
    """Whether a choice changes the tensor of this name in the exported student; from the names alone."""
    if name.startswith(TOWER):
        return False
    if name.startswith(PROJECTOR):
        return choice in ("all", "projector", "layers-and-projector", "lora", "lora-regex")
    layer = int(name.split(".")[2]) if name.startswith("model.layers.") else None
    is_linear = layer is not None and name.endswith("_proj.weight")
    return {
        "all": True,
        "projector": False,
        "decoder": True,
        "layers": layer == 1,
        "first-layer": layer == 0,
        "layers-and-projector": layer == 1,
        "lora": is_linear,
        "lora-alone": is_linear,
        "lora-keys": is_linear and "k_proj" in name,
        "lora-regex": is_linear and layer == 1 and ".mlp." in name,
    }[choice]


@pytest.mark.parametrize("choice", CHOICES)
def test_gradients_only_where_trained_and_always_in_one_order(choice: str, many_store: Path, make_job: MakeJob) -> None:
    """Batches with images and without give the same parameters a gradient, in the order that ZeRO-2 relies on."""
    job = chosen_job(make_job(many_store), choice)
    dataset, student = opened(job)
    randomised(student)
    with_images, without = places_by_kind(dataset)
    found, alone = arrivals(dataset, student, with_images[:3]), arrivals(dataset, student, without[:2])
    assert [*found] == [*alone]
    assert {*found} == trained_names(student)
    for name, gradient in found.items():
        assert gradient.abs().max() > 0, name
    own = {name.removeprefix("model.") for name in found if not name.startswith("adapters.")}
    base = {name.replace("lora_A.default", "").replace("lora_B.default", "").replace("..", ".") for name in own}
    assert base == {name for name in load_model_names(job) if is_expected(choice, name)}


def load_model_names(job: TrainJob) -> set[str]:
    return {name for name, _ in job.open_student().load_model().named_parameters()}


@pytest.mark.parametrize("choice", CHOICES)
def test_counts_are_those_of_the_student(choice: str, many_store: Path, make_job: MakeJob) -> None:
    job = chosen_job(make_job(many_store), choice)
    _, student = opened(job)
    counts = trained_counts(job.trained, job.open_student().size())
    trained = {name: value.numel() for name, value in student.model.named_parameters() if value.requires_grad}
    assert counts.trained == sum(trained.values())
    assert counts.projector == sum(size for name, size in trained.items() if name.startswith(PROJECTOR))
    assert counts.total == sum(value.numel() for value in student.model.parameters())
    if counts.tensors is not None:
        assert sorted(counts.tensors) == sorted(size for name, size in trained.items() if PROJECTOR not in name)


@pytest.mark.parametrize("choice", ["projector", "decoder", "layers", "lora", "lora-regex"])
def test_steps_change_only_what_is_trained(
    choice: str, many_store: Path, make_job: MakeJob, golden_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    job = chosen_job(make_job(many_store, steps=2, micro_batch=3, weight_decay=0.1), choice)
    with caplog.at_level("INFO"):
        result = train(job)
    assert result.student is not None
    before = load_file(golden_folder / "student" / "model.safetensors")
    after = load_file(result.student / "model.safetensors")
    assert before.keys() == after.keys()
    changed = {name for name, value in after.items() if not torch.equal(value, before[name])}
    assert changed == {name for name in before if is_expected(choice, name)}
    assert next(message for message in caplog.messages if message.startswith("trains: "))
    load_model(result.student, vision_config=golden_folder / "clip")
    assert (job.train.output / "lora").exists() is (job.trained.lora_settings is not None)
    again = train(job)
    assert again.already_finished


def test_checkpoints_hold_only_what_is_trained(many_store: Path, make_job: MakeJob, tmp_path: Path) -> None:
    sizes = {}
    for choice in ("all", "lora-alone"):
        job = chosen_job(make_job(many_store, steps=1, checkpoint_every=1, output=tmp_path / choice), choice)
        train(job)
        (folder,) = (job.train.output / "checkpoints").iterdir()
        sizes[choice] = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
        weights = {name for file in folder.glob("weights*") for name in load_file(file)}
        student = opened(job)[1]
        assert weights == trained_names(student)
        kept = sum(value.nbytes for file in folder.glob("*.safetensors") for value in load_file(file).values())
        assert kept == 12 * sum(value.numel() for value in student.parameters() if value.requires_grad)
    assert sizes["lora-alone"] < sizes["all"] / 5


def test_default_is_everything_but_the_tower(many_store: Path, make_job: MakeJob) -> None:
    job = make_job(many_store)
    assert job.trained == TrainedConfig() and job.trained.choice == "all"
    _, student = opened(job)
    assert {name for name, _ in student.model.named_parameters()} - trained_names(student.model) == {
        name for name, _ in student.model.named_parameters() if name.startswith(TOWER)
    }
