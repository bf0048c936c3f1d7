"""Kernels beside torch's in a student's run: the same terms, gradients and losses up to rounding."""

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from kernels_on_cpu import kernels_on_cpu  # noqa: F401 - a fixture
from torch import Tensor

from alignkd.student_train.data.collate import collate
from alignkd.student_train.job import TrainJob
from alignkd.student_train.objective.objective import weighted_total
from alignkd.student_train.objective.terms import TERMS
from alignkd.student_train.run.plan import open_samples
from alignkd.student_train.run.student import build_student
from alignkd.student_train.trained.settings import TrainedConfig
from alignkd.student_train.trainer import train
from alignkd.vlm.errors import InputError

pytestmark = pytest.mark.usefixtures("kernels_on_cpu")
MakeJob = Callable[..., TrainJob]
ReadMetrics = Callable[[Path], list[dict[str, Any]]]


def terms_and_gradients(job: TrainJob) -> dict[str, Tensor]:
    """Of one batch with images and without."""
    dataset = open_samples(job, job.open_student())
    student = build_student(job, job.open_student(), dataset.reader)
    student.model.use_kernels(job.train.kernels)
    targets = job.train.losses.needed_targets.values()
    terms = student(collate([dataset[i] for i in range(4)], targets=targets, attention_pairs="tqv"))
    weighted_total(terms, job.train.losses.weights, dict.fromkeys(TERMS, 1)).backward()
    found = {name: term.total.detach() for name, term in terms.items()}
    return found | {name: value.grad for name, value in student.named_parameters() if value.grad is not None}


@pytest.mark.parametrize("kernels", ["liger", "compile"])
@pytest.mark.parametrize("checkpointed", [False, True])
def test_terms_and_gradients(exact_store: Path, make_job: MakeJob, kernels: str, checkpointed: bool) -> None:
    """The attention loss records queries and keys in the first layer."""
    expected = terms_and_gradients(make_job(exact_store))
    found = terms_and_gradients(make_job(exact_store, kernels=kernels, gradient_checkpointing=checkpointed))
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        difference = (found[name] - value).norm() / value.norm().clamp_min(1e-30)
        assert difference <= 2e-5, f"{name} differs by {difference:.1e}"


@pytest.mark.parametrize("kernels", ["liger", "compile"])
def test_a_run(
    many_store: Path,
    make_job: MakeJob,
    read_metrics: ReadMetrics,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    kernels: str,
) -> None:
    """LoRA with dropout and layers computed again: the same random numbers. The kernels are no part of a run."""
    settings: dict[str, Any] = {"steps": 3, "micro_batch": 1, "global_batch": 2, "gradient_checkpointing": True}

    def job(kernels: str) -> TrainJob:
        made = make_job(many_store, output=tmp_path / kernels, kernels=kernels, **settings)
        return replace(made, trained=TrainedConfig(lora={"rank": 2, "dropout": 0.2}))

    with caplog.at_level(logging.INFO, "alignkd"):
        train(job("torch"))
        assert "kernels" not in caplog.text
        train(job(kernels))
    assert f"kernels {kernels}" in caplog.text
    found, expected = (read_metrics(tmp_path / name) for name in (kernels, "torch"))
    for line, reference in zip(found, expected, strict=True):
        for name, value in reference.items():
            assert line[name] == (value if value is None else pytest.approx(value, rel=1e-4)), name
    again = job("torch")
    assert train(replace(again, train=again.train.model_copy(update={"output": tmp_path / kernels}))).already_finished


def test_a_device_without_them(many_store: Path, make_job: MakeJob, monkeypatch: pytest.MonkeyPatch) -> None:
    """Refused before the student is loaded."""
    monkeypatch.delenv("TRITON_INTERPRET")
    monkeypatch.setattr("alignkd.student_train.trainer.build_student", None)
    with pytest.raises(InputError, match=r"^kernels 'liger' need a CUDA device, found cpu"):
        train(make_job(many_store, kernels="liger"))
