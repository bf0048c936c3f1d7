"""Training from the stem of a teacher of transformers is training from its stored float32 targets."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from alignkd.storage import StoreReader
from alignkd.student_train import trainer
from alignkd.student_train.data.collate import collate
from alignkd.student_train.job import TrainJob
from alignkd.student_train.objective.settings import LossConfig
from alignkd.student_train.run.checks.target_sources import stem_lookup
from alignkd.student_train.run.plan import open_samples
from alignkd.student_train.run.student import build_student
from alignkd.student_train.trainer import train
from alignkd.vlm.errors import InputError
from alignkd.vlm.families.huggingface.model.parts import tower_of
from alignkd.vlm.families.open import open_checkpoint
from alignkd.vlm.stem.extract import extract_stem
from alignkd.vlm.stem.file import read_stem_info

TEACHER = {"seed": 3, "hidden_size": 64, "heads": 4, "tower_seed": 9}
STUDENT = {"seed": 4, "hidden_size": 32, "heads": 2, "tower_seed": 9}
FROM_STEM = dict.fromkeys(("attention", "vision_top", "vision_all"), "stem")
STEPS = 2  # each sample once
ReadMetrics = Callable[[Path], list[dict[str, Any]]]
Metrics = list[dict[str, Any]]
MakeRun = Callable[..., TrainJob]


@pytest.fixture
def run(family_job: MakeRun, family_store: Callable[..., Path], checkpoint: Any, tmp_path: Path) -> MakeRun:
    """run(name of a family, name of the run, store settings, train settings)."""

    def make(family: str, name: str, store: dict[str, Any], **train: Any) -> TrainJob:
        return family_job(
            family,
            store=family_store(family, teacher=TEACHER, **store),
            student=checkpoint(family, **STUDENT),
            **{"output": tmp_path / name, "steps": STEPS, "micro_batch": 5, "adapter_init": "grouped_heads", **train},
        )

    return make


def assert_same_losses(found: Metrics, expected: Metrics, relative: float = 1e-6) -> None:
    assert len(found) == len(expected) == STEPS
    for mine, other in zip(found, expected, strict=True):
        for term in ("loss", "grad_norm", *LossConfig().weights):
            assert mine[term] == pytest.approx(other[term], rel=relative), (mine["step"], term)
    # the agreement means something only if the student moved between the steps
    assert all(abs(found[0][term] / found[-1][term] - 1) > 1e-4 for term in ("attention", "vision_all", "logit"))


@pytest.mark.parametrize("family", ["gemma3", "llava", "smolvlm"])
def test_the_same_losses_as_from_stored_targets(
    family: str, run: MakeRun, read_metrics: ReadMetrics, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Samples with no, one and several images in one batch; one of the runs is stopped and resumed."""
    stored, stem = run(family, "stored", {}), run(family, "stem", FROM_STEM, checkpoint_every=1)
    reader = StoreReader(stem.store)
    assert reader.manifest.codecs.from_stem == tuple(FROM_STEM) and "stem.safetensors" in reader.manifest.attachments
    assert reader[0].attention is None and reader[0].vision_embeddings is None
    train(stored)
    if family == "smolvlm":
        original = trainer.save_checkpoint

        class StoppedError(Exception):
            pass

        def stopping(*arguments: Any, **settings: Any) -> None:
            original(*arguments, **settings)
            raise StoppedError

        with monkeypatch.context() as patch, pytest.raises(StoppedError):
            patch.setattr(trainer, "save_checkpoint", stopping)
            train(stem)
    train(stem)
    assert_same_losses(read_metrics(stem.train.output), read_metrics(stored.train.output))


@pytest.mark.parametrize("family", ["gemma3", "llava"])
def test_the_same_losses_as_from_stored_layers(family: str, run: MakeRun, read_metrics: ReadMetrics) -> None:
    """Layers 0 and 1 of a stem of depth 2; the first of gemma3 attends to a sliding window, the second to all."""
    layers: dict[str, Any] = {"layers": [0, 1], "pairs": "all"}
    losses = {"losses": {"attention_layers": {0: 0, 1: [0, 1]}}}
    stored = run(family, "stored", {"attention": {**layers, "codec": "float32"}}, **losses)
    stem = run(family, "stem", {**FROM_STEM, "attention": {**layers, "codec": "stem"}}, **losses)
    assert read_stem_info(StoreReader(stem.store).attachment("stem.safetensors")).depth == 2
    for job in (stored, stem):
        train(job)
    assert_same_losses(read_metrics(stem.train.output), read_metrics(stored.train.output))


def test_a_stem_file_for_some_targets_and_for_the_head(
    run: MakeRun, read_metrics: ReadMetrics, checkpoint: Any, tmp_path: Path
) -> None:
    """Attention of all text from the stem, the rest from the store; hidden states through the stem's head."""
    settings = {"attention_pairs": "tqt", "logits": {"kind": "hidden", "dtype": "float32"}}
    stored = run("gemma3", "stored", settings)
    file = tmp_path / "stem.safetensors"
    extract_stem(open_checkpoint(checkpoint("gemma3", **TEACHER)), file, dtype=torch.float32, lm_head=True)
    stem = run("gemma3", "stem", settings, stem=file, targets={"attention": "stem", "logits": "stem"})
    for job in (stored, stem):
        train(job)
    assert_same_losses(read_metrics(stem.train.output), read_metrics(stored.train.output))


def test_validation_from_the_stem_is_that_from_stored_targets(run: MakeRun) -> None:
    held_out = {"share": 0.7, "export": "last"}
    jobs = [run("llava", name, store, validation=held_out) for name, store in (("stored", {}), ("stem", FROM_STEM))]
    for job in jobs:
        train(job)
    expected, found = (
        [json.loads(line) for line in (job.train.output / "validation.jsonl").read_text().splitlines()] for job in jobs
    )
    assert len(found) == len(expected) == STEPS + 1
    for mine, other in zip(found, expected, strict=True):
        for term in ("loss", *LossConfig().weights):
            assert mine[term] == pytest.approx(other[term], rel=1e-6), (mine["step"], term)


def test_the_tower_runs_once_and_nothing_of_the_stem_is_trained_or_saved(run: MakeRun) -> None:
    job = run("llava", "never", FROM_STEM)
    checkpoint = job.open_student()
    dataset = open_samples(job, checkpoint)
    student = build_student(job, checkpoint, dataset.reader)
    assert student.stem is not None
    assert not [name for name, _ in [*student.named_parameters(), *student.named_buffers()] if "stem" in name]
    assert not [name for name in student.state_dict() if "stem" in name]
    passes: list[int] = []
    tower_of(student.model.model).register_forward_hook(lambda *_: passes.append(1))  # type: ignore[union-attr]
    with_one_image = next(n for n in range(len(dataset)) if len(dataset[n][1].tokens_of_image) == 1)
    wanted, lookup = job.train.losses.needed_targets.values(), stem_lookup(dataset.reader, job.train)
    student(collate([dataset[with_one_image]], targets=wanted, attention_pairs="tqv", stem=lookup))
    assert passes == [1]
    # moved with the student, but the targets keep the teacher's dtype
    student.to(torch.bfloat16)
    stem: Any = student.stem.stem
    assert {parameter.dtype for parameter in stem._kept[0].parameters()} == {torch.float32}


def test_another_tower_is_refused(run: MakeRun, checkpoint: Any) -> None:
    job = run("llava", "never", FROM_STEM)
    other = replace(job, student=checkpoint("llava", **STUDENT | {"tower_seed": 10}))
    with pytest.raises(InputError, match=r"vision tower has hash \w{64} in float32, the student's \w{64}.*store att"):
        train(other)
    assert not (job.train.output / "metrics.jsonl").exists()
