"""Runs with LoRA: resumed, killed, on two ranks, in 16 bits, on quantised weights; and the adapter that peft loads."""

import json
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from processes_of_two import ended, run_two
from safetensors.torch import load_file
from trained_choices import chosen_job, opened, randomised

from alignkd.student_train import trainer
from alignkd.student_train.errors import TrainError
from alignkd.student_train.job import TrainJob
from alignkd.student_train.trained.lora import lora_layers
from alignkd.student_train.trained.settings import TrainedConfig
from alignkd.student_train.trainer import train
from alignkd.vlm.inputs.batch import collate_sequences

MakeJob = Callable[..., TrainJob]
ReadMetrics = Callable[[Path], list[dict[str, Any]]]
DROPOUT = {"lora": {"rank": 4, "dropout": 0.2}}
FILES = ("student/model.safetensors", "adapters.safetensors", "lora/adapter_model.safetensors")


def with_lora(job: TrainJob, **keys: Any) -> TrainJob:
    return replace(job, trained=TrainedConfig(**keys))


def test_a_killed_run_with_dropout_is_the_unbroken_one(
    many_store: Path,
    make_job: MakeJob,
    start_child: Any,
    one_thread: None,
    read_metrics: ReadMetrics,
    tmp_path: Path,
) -> None:
    """kill -9 in a step and in the export; bit for bit in the end."""
    settings: dict[str, Any] = {"steps": 3, "micro_batch": 2, "checkpoint_every": 1}
    settings |= {"gradient_checkpointing": True}
    unbroken = with_lora(make_job(many_store, output=tmp_path / "unbroken", **settings), **DROPOUT)
    train(unbroken)
    job = with_lora(make_job(many_store, output=tmp_path / "killed", **settings), **DROPOUT)
    blows = [("trainer", "_optimiser_step", 2, signal.SIGKILL), ("export", "save_tensors", 1, signal.SIGKILL)]
    for blow in blows:
        ended(start_child(job, blow), -signal.SIGKILL)
    ended(start_child(job))
    assert read_metrics(job.train.output) == read_metrics(unbroken.train.output)
    for file in FILES:
        assert (job.train.output / file).read_bytes() == (unbroken.train.output / file).read_bytes(), file
    assert train(job).already_finished


def test_dropout_is_drawn_anew_and_checkpointing_draws_the_same(
    many_store: Path, make_job: MakeJob, read_metrics: ReadMetrics, tmp_path: Path
) -> None:
    """Two micro-batches of one sample have different losses, and layers that are computed again the same masks."""

    def run(name: str, *, checkpointing: bool = False, **keys: Any) -> list[dict[str, Any]]:
        job = make_job(
            many_store, output=tmp_path / name, steps=3, micro_batch=1, global_batch=2,
            gradient_checkpointing=checkpointing, learning_rate=1e-2,
        )  # fmt: skip
        train(with_lora(job, **keys))
        return read_metrics(tmp_path / name)

    plain, again = run("plain", **DROPOUT), run("again", checkpointing=True, **DROPOUT)
    without = run("without", lora={"rank": 4})
    for line, reference in zip(again, plain, strict=True):
        for name, value in reference.items():
            assert line[name] == (value if value is None else pytest.approx(value, rel=1e-5)), name
    assert plain[0]["loss"] == pytest.approx(without[0]["loss"], rel=1e-6)  # the second matrix is still 0
    assert plain[-1]["loss"] != pytest.approx(without[-1]["loss"], rel=1e-4)


@pytest.mark.parametrize("choice", ["projector", "quantised"])
def test_two_ranks_are_one(
    choice: str,
    many_store: Path,
    make_job: MakeJob,
    start_child: Any,
    one_thread: None,
    read_metrics: ReadMetrics,
    tmp_path: Path,
) -> None:
    """With one sample per pass, one rank often has an image and the other text alone; LoRA beside quantised weights."""
    settings: dict[str, Any] = {"steps": 2, "global_batch": 4}

    def chosen(job: TrainJob) -> TrainJob:
        return with_lora(job, lora={}, quantization="nf4") if choice == "quantised" else chosen_job(job, choice)

    alone = chosen(make_job(many_store, output=tmp_path / "alone", micro_batch=4, **settings))
    train(alone)
    job = chosen(make_job(many_store, output=tmp_path / "two", micro_batch=1, **settings))
    run_two(start_child, job)
    for line, reference in zip(*(read_metrics(one.train.output) for one in (job, alone)), strict=True):
        for figure, value in reference.items():
            assert line[figure] == (value if value is None else pytest.approx(value, rel=1e-4)), figure
    weights, expected = (load_file(one.train.output / "student" / "model.safetensors") for one in (job, alone))
    for key, value in expected.items():
        # AdamW turns the sign of a gradient near 0 into a whole step of the learning rate
        assert (weights[key] - value).abs().max() < 5e-3, key
        assert (weights[key] - value).norm() <= 1e-2 * value.norm() + 1e-6, key


def test_a_resume_with_another_choice_is_refused(many_store: Path, make_job: MakeJob) -> None:
    job = make_job(many_store, steps=2, checkpoint_every=1)
    train(job)
    with pytest.raises(TrainError, match=r"trained was all, is lora of rank 4, alpha 32, .*restore them") as error:
        train(with_lora(job, **DROPOUT))
    assert "\n" not in str(error.value)


def test_checkpoints_without_the_keys_are_those_of_all(
    many_store: Path, make_job: MakeJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that an earlier version started resumes as `all`, and not as anything else."""
    job = make_job(many_store, steps=3, checkpoint_every=1)
    real = trainer.save_checkpoint

    def old(folder: Path, engine: Any, state: Any, settings: dict[str, Any], *more: Any, **options: Any) -> None:
        old_settings = {name: value for name, value in settings.items() if name not in ("trained", "quantization")}
        real(folder, engine, state, old_settings, *more, **options)
        if state.step == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(trainer, "save_checkpoint", old)
    with pytest.raises(KeyboardInterrupt):
        train(job)
    monkeypatch.undo()
    with pytest.raises(TrainError, match="trained was all, is projector"):
        train(with_lora(job, trained="projector"))
    assert train(job).step == 3


def test_in_bfloat16_masters_are_float32(many_store: Path, make_job: MakeJob, tmp_path: Path) -> None:
    """Everything that saves memory at once; LoRA is saved with the precision of its master weights."""
    job = make_job(
        many_store, steps=3, micro_batch=2, global_batch=4, gradient_checkpointing=True, optimizer="adamw_offload",
        dtype="bfloat16", learning_rate=1e-3, projector_learning_rate=1e-4,
    )  # fmt: skip
    result = train(with_lora(job, **DROPOUT))
    assert result.student is not None and result.skipped_steps == 0
    saved = load_file(job.train.output / "lora" / "adapter_model.safetensors")
    matrices = {name: value for name, value in saved.items() if "lora_" in name}
    assert all(value.dtype == torch.float32 for value in matrices.values())
    assert any(not torch.equal(value, value.bfloat16().float()) for value in matrices.values())
    before = load_file(Path(str(job.student)) / "model.safetensors")
    after = load_file(result.student / "model.safetensors")
    name = "model.layers.0.self_attn.q_proj"
    first, second = (saved[f"base_model.model.{name}.lora_{which}.weight"] for which in "AB")
    expected = before[f"{name}.weight"].bfloat16().float() + 32 / 4 * (second @ first)
    assert torch.equal(after[f"{name}.weight"], expected.bfloat16())


def test_the_adapter_is_in_the_layout_of_peft(many_store: Path, make_job: MakeJob, golden_folder: Path) -> None:
    """peft puts it on the official model; logits equal those of the merged student."""
    from peft import PeftConfig

    job = with_lora(make_job(many_store, steps=2), lora={"rank": 4, "targets": ["q_proj", "up_proj"]})
    result = train(job)
    assert result.student is not None
    config = PeftConfig.from_pretrained(str(job.train.output / "lora"))
    assert (config.r, config.lora_alpha, config.base_model_name_or_path) == (4, 32, str(golden_folder / "student"))
    assert len(config.target_modules) == 2 * job.open_student().size().num_layers
    weights = load_file(job.train.output / "lora" / "adapter_model.safetensors")
    assert sum("lora_A" in name for name in weights) == len(config.target_modules)
    document = json.loads((job.train.output / "lora" / "adapter_config.json").read_text())
    assert document["peft_type"] == "LORA" and document["modules_to_save"] == ["model.mm_projector"]


def test_a_lost_adapter_is_exported_again(many_store: Path, make_job: MakeJob) -> None:
    job = with_lora(make_job(many_store, steps=2, checkpoint_every=1), **DROPOUT)
    train(job)
    file = job.train.output / "lora" / "adapter_model.safetensors"
    content = file.read_bytes()
    file.write_bytes(content[:40])
    assert train(job).already_finished
    assert file.read_bytes() == content


@pytest.mark.parametrize(("kind", "dtype"), [("nf4", "bfloat16"), ("int8", "float32")])
def test_quantised_weights_are_merged_into_the_original_ones(
    kind: Any, dtype: Any, many_store: Path, make_job: MakeJob
) -> None:
    pytest.importorskip("bitsandbytes")
    job = with_lora(
        make_job(many_store, steps=4, learning_rate=5e-3, gradient_checkpointing=kind == "nf4", dtype=dtype),
        lora={"rank": 4},
        quantization=kind,
    )
    result = train(job)
    assert result.student is not None and result.skipped_steps == 0
    before = load_file(Path(str(job.student)) / "model.safetensors")
    after = load_file(result.student / "model.safetensors")
    lora = load_file(job.train.output / "lora" / "adapter_model.safetensors")
    assert before.keys() == after.keys()
    real = getattr(torch, dtype)
    for name, value in before.items():
        value = value.to(real)
        path = f"base_model.model.{name.removesuffix('.weight')}.lora_"
        if f"{path}A.weight" in lora:
            expected = value.float() + 32 / 4 * (lora[f"{path}B.weight"] @ lora[f"{path}A.weight"])
            assert torch.equal(after[name], expected.to(real)) and not torch.equal(after[name], value), name
        elif "mm_projector" not in name:
            assert torch.equal(after[name], value), name


@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_quantised_gradients_are_near_those_without(kind: Any, many_store: Path, make_job: MakeJob) -> None:
    """Of LoRA's matrices of all layers, through quantised ones."""
    pytest.importorskip("bitsandbytes")
    gradients = {}
    for quantization in ("none", kind):
        job = with_lora(make_job(many_store), lora={"rank": 4}, quantization=quantization)
        dataset, student = opened(job)
        randomised(student)
        batch = collate_sequences([dataset[0][0], dataset[1][0]])
        vision = student.model.encode_images(batch.images)
        student.model.hidden_states(batch, vision).pow(2).sum().backward()
        layers = dict(lora_layers(student.model))
        gradients[quantization] = {
            name: layer.lora_B["default"].weight.grad for name, layer in layers.items() if "layers.0" in name
        }
    for name, value in gradients["none"].items():
        similarity = torch.cosine_similarity(gradients[kind][name].flatten(), value.flatten(), dim=0)
        assert similarity > 0.8, (name, similarity)
