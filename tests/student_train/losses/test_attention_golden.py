"""The attention loss in every form against golden values and gradients, made by two independent float64 references."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from alignkd.student_train.data.decode import EncodedTensor
from alignkd.student_train.data.targets import AttentionTargets
from alignkd.student_train.losses.attention.row_weights import sharpness, surprise
from alignkd.student_train.losses.loss_sum import LossSum
from alignkd.student_train.objective.attention.map_losses import chunked_map_loss
from alignkd.student_train.objective.attention.match import AttentionForm, HeadWeights
from alignkd.student_train.objective.attention.row_reference import RowReference
from alignkd.student_train.objective.attention.rows_of_pair import RowsOfPair
from alignkd.student_train.objective.attention.term import chunked_attention_loss
from alignkd.vlm.attention.attention_rows import RowInputs

GOLDEN = Path(__file__).parents[2] / "golden" / "objectives"
CASES = [0, 1, 2]


def read(folder: str, case: int) -> tuple[dict[str, Any], dict[str, Tensor]]:
    path = GOLDEN / folder / f"{case}"
    return json.loads(path.with_suffix(".json").read_text()), load_file(path.with_suffix(".safetensors"))


def as_inputs(scores_BHRL: Tensor, *, causal: bool) -> RowInputs:
    """Queries and keys that have these scores: the keys are unit vectors."""
    num, heads, rows, length = scores_BHRL.shape
    key_BHLd = torch.eye(length, dtype=torch.float64).expand(num, heads, -1, -1)
    rows_BR = torch.arange(rows).expand(num, -1)
    visible = torch.ones(num, rows, length, dtype=torch.bool)
    return RowInputs(
        query_BHRd=scores_BHRL,
        key_BHLd=key_BHLd,
        rows_BR=rows_BR,
        scaling=1.0,
        visible_BRL=visible.tril() if causal else visible,
    )


def as_targets(teacher_BHRC: Tensor) -> AttentionTargets:
    num, _, rows, cols = teacher_BHRC.shape
    return AttentionTargets(
        rows_BR=torch.arange(rows).expand(num, -1),
        cols_BC=torch.arange(cols).expand(num, -1),
        num_rows_B=[rows] * num,
        num_cols_B=[cols] * num,
        coded_BRHC=EncodedTensor.plain(teacher_BHRC.transpose(1, 2)),
    )


def rows_loss(tensors: dict[str, Tensor], form: AttentionForm, reference: RowReference | None = None) -> LossSum:
    teacher_HRC = tensors["in.teacher_columns"]
    pair = RowsOfPair(
        targets=as_targets(teacher_HRC[None]),
        teacher=(0,),
        heads=HeadWeights(weight_ST=torch.eye(len(teacher_HRC), dtype=torch.float64)),
        form=form,
        reference=reference,
    )
    scores = tensors["in.student_scores"]
    return chunked_attention_loss(pair, as_inputs(scores[None], causal=False), chunk_bytes=4 * 2 * scores[0].numel())


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(("form", "name"), [("mse", "mse"), ("kl", "kl_with_rest"), ("row_cosine", "cosine")])
def test_forms_of_rows(form: AttentionForm, name: str, case: int) -> None:
    values, tensors = read("attention_rows", case)
    leaf = tensors["in.student_scores"].requires_grad_()
    found = rows_loss(tensors, form)
    assert found.total.item() == pytest.approx(values[f"{name}.sum"], rel=1e-10)
    (gradient,) = torch.autograd.grad(found.total, leaf)
    torch.testing.assert_close(gradient, tensors[f"grad.{name}.student_scores"], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("kind", ["sharpness", "surprise"])
def test_weights_of_rows(kind: Any, case: int) -> None:
    """Divided by the sum of the weights of all rows: the mean weight times their number."""
    values, tensors = read("attention_rows", case)
    teacher, mean_map = tensors["in.teacher_columns"], tensors["in.mean_map"]
    columns = torch.tensor([teacher.shape[-1]])
    own = sharpness(teacher[None], columns) if kind == "sharpness" else surprise(teacher[None], columns, mean_map)
    expected = tensors[f"in.weights.{kind}"]
    torch.testing.assert_close(own[0], expected, rtol=1e-10, atol=1e-12)
    leaf = tensors["in.student_scores"].requires_grad_()
    found = rows_loss(tensors, "kl", RowReference(kind, expected.mean(), mean_map))
    name = f"kl_with_rest.weighted_by_{kind}"
    assert found.mean.item() == pytest.approx(values[name], rel=1e-10)
    (gradient,) = torch.autograd.grad(found.mean, leaf)
    torch.testing.assert_close(gradient, tensors[f"grad.{name}.student_scores"], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("case", CASES)
def test_maps_of_layers(case: int) -> None:
    """CompoDistill's paper form: head means, the mean of a group of teacher layers, all rows, vision columns."""
    values, tensors = read("compodistill", case)
    group, num_vision = values["group_size"], int(tensors["in.num_vision"])
    length = tensors["in.teacher_scores"].shape[-1]
    future = torch.ones(length, length, dtype=torch.bool).triu(1)
    # [layers, samples, heads, L, L] -> the layers' heads of each sample side by side
    maps = tensors["in.teacher_scores"].masked_fill(future, -torch.inf).softmax(-1)[..., :num_vision]
    layers, _, heads = maps.shape[:3]
    targets = as_targets(maps.transpose(0, 1).flatten(1, 2))
    targets = AttentionTargets(**{**vars(targets), "layers": tuple(range(layers))})
    leaf = tensors["in.student_scores"].requires_grad_()
    mean = HeadWeights(weight_ST=torch.full((1, heads), 1 / heads, dtype=torch.float64), of_mean=True)
    total = torch.zeros((), dtype=torch.float64)
    for place, scores in enumerate(leaf):
        teacher = tuple(range(place, place + group))
        pair = RowsOfPair(targets=targets, teacher=teacher, heads=mean, form="cosine")
        loss = chunked_map_loss(
            pair, as_inputs(scores, causal=True), len(scores), chunk_bytes=4 * 3 * scores[0].numel()
        )
        assert loss.count == len(scores)
        total = total + loss.total
    assert total.item() == pytest.approx(values["paper.sum_over_layers_and_samples"], rel=1e-10)
    (gradient,) = torch.autograd.grad(total, leaf)
    torch.testing.assert_close(gradient, tensors["grad.paper.student_scores"], rtol=1e-9, atol=1e-12)
