"""Runs that compare attention of several layers: resumed, on two ranks, with gradient checkpointing, exported."""

import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from processes_of_two import ended, run_two
from safetensors.torch import load_file

from alignkd.student_train.data.collate import collate
from alignkd.student_train.errors import TrainError
from alignkd.student_train.job import TrainJob
from alignkd.student_train.objective.objective import weighted_total
from alignkd.student_train.run.attention.chosen import attention_match, chosen_attention
from alignkd.student_train.run.attention.row_reference import FILE
from alignkd.student_train.run.output.export_checkpoint import export_checkpoint
from alignkd.student_train.run.plan import open_samples
from alignkd.student_train.run.student import build_student
from alignkd.student_train.trainer import train

MakeJob = Callable[..., TrainJob]
ReadMetrics = Callable[[Path], list[dict[str, Any]]]
ONLY_ATTENTION = {"vision_all": 0.0, "vision_top": 0.0, "logit": 0.0, "attention": 1000.0}
BY_LAYER = {"attention_0", "attention_1"}
TWO_LAYERS = {**ONLY_ATTENTION, "attention_layers": {0: 0, 1: (0, 1)}}


@pytest.mark.parametrize(
    "losses",
    [
        {"attention_row_weights": "surprise", "attention_decay": 0.6},
        {"attention_form": "kl", "attention_heads": "grouped", "attention_row_weights": "sharpness"},
    ],
)
def test_killed_and_resumed_equals_unbroken(
    losses: dict[str, Any],
    layers_store: Path,
    make_job: MakeJob,
    start_child: Any,
    one_thread: None,
    read_metrics: ReadMetrics,
    tmp_path: Path,
) -> None:
    settings: dict[str, Any] = {"steps": 3, "micro_batch": 2, "checkpoint_every": 1, "losses": TWO_LAYERS | losses}
    unbroken = make_job(layers_store, output=tmp_path / "unbroken", **settings)
    train(unbroken)
    job = make_job(layers_store, output=tmp_path / "killed", **settings)
    ended(start_child(job, ("trainer", "_optimiser_step", 3, signal.SIGKILL)), -signal.SIGKILL)
    before = (job.train.output / FILE).read_bytes()
    ended(start_child(job))
    assert read_metrics(job.train.output) == read_metrics(unbroken.train.output)
    assert all(line.keys() >= BY_LAYER for line in read_metrics(job.train.output))
    for name in ("student/model.safetensors", "adapters.safetensors", FILE):
        assert (job.train.output / name).read_bytes() == (unbroken.train.output / name).read_bytes()
    assert (job.train.output / FILE).read_bytes() == before


def test_figures_of_a_run_without_a_checkpoint_are_not_those_of_the_next(
    layers_store: Path, make_job: MakeJob, start_child: Any, one_thread: None, tmp_path: Path
) -> None:
    settings: dict[str, Any] = {"steps": 2, "micro_batch": 2, "checkpoint_every": 2}

    def job_with(output: str, weights: str) -> TrainJob:
        losses = TWO_LAYERS | {"attention_row_weights": weights}
        return make_job(layers_store, output=tmp_path / output, losses=losses, **settings)

    ended(
        start_child(job_with("again", "sharpness"), ("trainer", "_optimiser_step", 1, signal.SIGKILL)), -signal.SIGKILL
    )
    before = (tmp_path / "again" / FILE).read_bytes()
    for output in ("again", "afresh"):
        train(job_with(output, "surprise"))
    for name in ("adapters.safetensors", FILE):
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "afresh" / name).read_bytes()
    assert (tmp_path / "again" / FILE).read_bytes() != before


@pytest.mark.parametrize("form", ["mse", "cosine", "filtered_cosine"])
def test_two_ranks_equal_one(
    form: str, layers_store: Path, make_job: MakeJob, start_child: Any, read_metrics: ReadMetrics, tmp_path: Path
) -> None:
    """With one sample per pass, one of the two ranks often has no image."""
    losses = TWO_LAYERS | {"attention_form": form, "attention_heads": "adapter"}
    settings: dict[str, Any] = {"steps": 2, "global_batch": 4, "losses": losses}
    alone = make_job(layers_store, output=tmp_path / "alone", micro_batch=4, **settings)
    train(alone)
    job = make_job(layers_store, output=tmp_path / "two", micro_batch=1, **settings)
    run_two(start_child, job, code=0)
    for found, expected in zip(read_metrics(job.train.output), read_metrics(alone.train.output), strict=True):
        assert expected.keys() >= BY_LAYER
        for name, value in expected.items():
            assert found[name] == (value if value is None else pytest.approx(value, rel=2e-5)), name


def batch_and_student(job: TrainJob) -> tuple[Any, Any]:
    samples = open_samples(job, job.open_student())
    student = build_student(job, job.open_student(), samples.reader)
    match = attention_match(samples.reader, student.model.config, job.train)
    batch = collate(
        [samples[number] for number in range(4)],
        targets=["attention"],
        attention_pairs=chosen_attention(samples.reader, match),
    )
    return batch, student


@pytest.mark.parametrize("layers", [{0: 0}, {1: 1}, {0: 0, 1: (0, 1)}])
@pytest.mark.parametrize("form", [{}, {"attention_form": "kl", "attention_heads": "grouped"}], ids=["mse", "kl"])
def test_gradient_checkpointing_changes_no_gradient(
    layers: Any, form: dict[str, str], layers_store: Path, make_job: MakeJob
) -> None:
    gradients = []
    for checkpointed in (False, True):
        losses = {**ONLY_ATTENTION, "attention_layers": layers, **form}
        job = make_job(layers_store, losses=losses, gradient_checkpointing=checkpointed)
        batch, student = batch_and_student(job)
        weighted_total({"attention": student(batch)["attention"]}, {"attention": 1.0}, {"attention": 1}).backward()
        gradients.append({n: p.grad for n, p in student.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    own = [f"model.model.layers.{layer}.self_attn.q_proj.weight" for layer in layers]
    assert all(gradients[0][name].abs().max() > 0 for name in own)
    for name, value in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], value, rtol=1e-5, atol=1e-6 * float(value.abs().max()))


def test_each_layer_has_an_adapter(layers_store: Path, make_job: MakeJob, tmp_path: Path) -> None:
    """Files of the run and of any checkpoint; they start a further run; a run of one layer cannot read them."""
    job = make_job(layers_store, steps=2, micro_batch=4, checkpoint_every=1, losses=TWO_LAYERS)
    train(job)
    adapters = job.train.output / "adapters.safetensors"
    found = load_file(adapters)
    assert found["attn_adapters.1.weight"].shape == found["attn_adapter.weight"].shape == (4, 8, 1, 1)
    assert not torch.equal(found["attn_adapters.1.weight"], found["attn_adapter.weight"])
    export_checkpoint(job, 2, tmp_path / "exported")
    assert (tmp_path / "exported" / "adapters.safetensors").read_bytes() == adapters.read_bytes()
    settings: dict[str, Any] = {"steps": 1, "micro_batch": 4, "adapters": adapters}
    train(make_job(layers_store, output=tmp_path / "next", losses=TWO_LAYERS, **settings))
    with pytest.raises(TrainError, match="they belong to another teacher or student"):
        train(make_job(layers_store, output=tmp_path / "other", losses=ONLY_ATTENTION, **settings))


def test_frozen_adapters_stay_as_they_are(layers_store: Path, make_job: MakeJob, tmp_path: Path) -> None:
    settings: dict[str, Any] = {
        "micro_batch": 4,
        "steps": 2,
        "adapter_learning_rate": 0.0,
        "adapter_init": "grouped_heads",
        "losses": TWO_LAYERS | {"attention_form": "kl"},
        "weight_decay": 0.1,
    }
    train(make_job(layers_store, output=tmp_path / "frozen", **settings))
    found = load_file(tmp_path / "frozen" / "adapters.safetensors")
    for name in ("attn_adapter", "attn_adapters.1"):
        expected = torch.repeat_interleave(torch.eye(4), 2, dim=1) / 2
        assert torch.equal(found[f"{name}.weight"][:, :, 0, 0], expected) and not found[f"{name}.bias"].any()
    # the same loss as with the groups' means that no adapter computes
    grouped = settings | {"losses": settings["losses"] | {"attention_heads": "grouped"}}
    train(make_job(layers_store, output=tmp_path / "grouped", **grouped))
    own, other = (load_file(tmp_path / name / "student" / "model.safetensors") for name in ("frozen", "grouped"))
    for name, value in own.items():
        torch.testing.assert_close(value, other[name], rtol=1e-4, atol=1e-5, msg=name)


def test_the_weight_falls_along_a_cosine(layers_store: Path, make_job: MakeJob, read_metrics: ReadMetrics) -> None:
    job = make_job(layers_store, steps=4, micro_batch=4, losses=TWO_LAYERS | {"attention_decay": 0.5})
    train(job)
    lines = read_metrics(job.train.output)
    weights = [line["attention_weight"] for line in lines]
    assert weights == pytest.approx([1000.0, 500.0, 0.0, 0.0])
    for line, weight in zip(lines, weights, strict=True):
        assert line["loss"] == pytest.approx(line["supervised"] + weight * line["attention"], rel=1e-6)
        assert line["attention"] > 0


def test_other_layers_are_another_run(layers_store: Path, make_job: MakeJob) -> None:
    settings: dict[str, Any] = {"micro_batch": 4, "checkpoint_every": 1}
    train(make_job(layers_store, steps=1, losses=TWO_LAYERS, **settings))
    with pytest.raises(TrainError, match=r"losses\.attention_layers was 0: 0, 1: \[0, 1\], is 0: 0, 1: 1"):
        train(make_job(layers_store, steps=1, losses=TWO_LAYERS | {"attention_layers": {0: 0, 1: 1}}, **settings))
