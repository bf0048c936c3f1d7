"""Gradient checkpointing and attention in chunks: the same numbers, less memory."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from alignkd.student_train.data.collate import collate
from alignkd.student_train.job import TrainJob
from alignkd.student_train.losses.attention.fused import fused_attention_loss
from alignkd.student_train.objective.attention.term import chunked_attention_loss
from alignkd.student_train.objective.objective import DistilledStudent, weighted_total
from alignkd.student_train.objective.settings import LossConfig
from alignkd.student_train.objective.terms import TERMS
from alignkd.student_train.run.plan import open_samples
from alignkd.student_train.run.student import build_student
from alignkd.student_train.trainer import train

MakeJob = Callable[..., TrainJob]
ReadMetrics = Callable[[Path], list[dict[str, Any]]]


def test_a_run_has_the_same_losses(
    many_store: Path, make_job: MakeJob, read_metrics: ReadMetrics, tmp_path: Path
) -> None:
    """Every term, with accumulation and text-only batches."""
    settings: dict[str, Any] = {"steps": 3, "micro_batch": 1, "global_batch": 3}
    for checkpointed in (False, True):
        train(
            make_job(many_store, output=tmp_path / str(checkpointed), gradient_checkpointing=checkpointed, **settings)
        )
    found, expected = (read_metrics(tmp_path / str(checkpointed)) for checkpointed in (True, False))
    for line, reference in zip(found, expected, strict=True):
        for name, value in reference.items():
            assert line[name] == (value if value is None else pytest.approx(value, rel=1e-6)), name


def test_only_the_inputs_of_layers_are_kept(exact_store: Path, make_job: MakeJob) -> None:
    job = make_job(exact_store)
    dataset = open_samples(job, job.open_student())
    batch = collate([dataset[i] for i in range(4)], targets=LossConfig().needed_targets.values(), attention_pairs="tqv")
    student = build_student(job, job.open_student(), dataset.reader)

    def kept_by(part: Callable[[], Tensor]) -> int:
        """Numbers that are kept for the backward pass beside weights."""
        weights = {value.untyped_storage().data_ptr() for value in student.parameters()}
        kept: dict[int, int] = {}

        def note(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in weights:
                kept[storage.data_ptr()] = storage.nbytes() // tensor.element_size()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            result = part()  # referenced, so that no storage's place is used twice
        del result
        return sum(kept.values())

    length, width = batch.sequences.input_ids_BL.shape[1], student.model.config.hidden_size
    embeds = torch.randn(4, length, width, requires_grad=True)
    whole = kept_by(lambda: student.model.decoder_states(embeds))
    student.model.checkpoint_layers()
    inputs_only = kept_by(lambda: student.model.decoder_states(embeds))
    layers = student.model.config.num_layers
    assert inputs_only < (layers + 8) * embeds.numel() < whole / 2


@pytest.mark.parametrize("checkpointed", [False, True])
def test_attention_in_chunks_gives_the_same_gradients(
    checkpointed: bool, exact_store: Path, make_job: MakeJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = make_job(exact_store, losses={"logit": 0.0}, gradient_checkpointing=checkpointed)
    dataset = open_samples(job, job.open_student())
    batch = collate(
        [dataset[i] for i in range(4)], targets=job.train.losses.needed_targets.values(), attention_pairs="tqv"
    )
    counts = dict.fromkeys(TERMS, 1)

    def gradients(student: DistilledStudent, chunk_bytes: int) -> dict[str, Tensor]:
        with monkeypatch.context() as patch:
            patch.setattr(
                "alignkd.student_train.objective.attention.term.chunked_attention_loss",
                lambda *args, **given: chunked_attention_loss(*args, **given | {"chunk_bytes": chunk_bytes}),
            )
            weighted_total(student(batch), job.train.losses.weights, counts).backward()
        return {name: value.grad for name, value in student.named_parameters() if value.grad is not None}

    expected = gradients(build_student(job, job.open_student(), dataset.reader), 1 << 30)  # all rows at once
    for chunk_bytes in (1, 1 << 20):  # a row at a time, and a few
        found = gradients(build_student(job, job.open_student(), dataset.reader), chunk_bytes)
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-5 * float(value.abs().max()), msg=name)


def test_no_attention_matrix_is_kept(exact_store: Path, make_job: MakeJob) -> None:
    """Kept are gradients of queries and keys: nothing of size heads x rows x length."""
    job = make_job(exact_store)
    model = build_student(job, job.open_student(), open_samples(job, job.open_student()).reader).model
    length, rows, heads = 300, 150, model.config.num_heads
    embeds = torch.randn(1, length, model.config.hidden_size, requires_grad=True)
    rows_BR, cols_BC = torch.arange(length - rows, length)[None], torch.arange(4)[None]
    sizes: list[int] = []
    with model.watched_first_layer() as first_layer:
        model.decoder_states(embeds)
    with torch.autograd.graph.saved_tensors_hooks(lambda x: sizes.append(x.numel()) or x, lambda x: x):
        fused_attention_loss(
            first_layer.row_inputs(rows_BR),
            cols_BC,
            lambda chosen, _: chosen.square().sum(dim=(1, 2, 3)),
            [],
            rows_at_once=rows,
        )
    assert embeds.numel() <= max(sizes) < heads * rows * length / 5
