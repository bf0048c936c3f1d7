"""Training with `vsd` and `vlad`: the terms of the live models, two ranks, resumed runs, both layouts."""

import itertools
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from processes_of_two import ended, run_two
from safetensors.torch import load_file
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn import functional

from alignkd.student_train.data.collate import collate
from alignkd.student_train.job import TrainJob
from alignkd.student_train.objective.counts import GlobalCounts
from alignkd.student_train.objective.objective import DistilledStudent, weighted_total
from alignkd.student_train.run.checks.fit import compared_tokens
from alignkd.student_train.run.plan import open_samples
from alignkd.student_train.run.student import build_student
from alignkd.student_train.trainer import train
from alignkd.vlm.families.family import VisionLanguageModel
from alignkd.vlm.families.open import open_checkpoint
from alignkd.vlm.inputs.batch import collate_sequences

ReadMetrics = Callable[[Path], list[dict[str, Any]]]
LOSSES = {
    **{"attention": 0, "vision_all": 0, "vision_top": 0, "logit": 0},
    **{"supervised": 0.5, "vsd": 0.25, "vlad": 25.0},
}
EXACT = {"vision_states": "float32", "vision_text_affinity": "float32"}
SMALL = {"vision_states": "int8_group", "vision_text_affinity": "int8_unit"}
TEACHER = {"seed": 3, "hidden_size": 64, "heads": 4}
NAMES = ["qwen3_vl", "smolvlm"]


@pytest.fixture
def em_kd_job(family_job: Callable[..., TrainJob], family_store: Callable[..., Path]) -> Callable[..., TrainJob]:
    """`em_kd_job("qwen3_vl", SMALL, backend="zarr", **train settings)`."""

    def make(name: str, settings: dict[str, Any], backend: str = "zarr", **train: Any) -> TrainJob:
        kept = {"attention": "none", "vision_top": "none", "vision_all": "none", "logits": {"kind": "none"}}
        store = family_store(name, backend=backend, **kept, **settings)
        return family_job(name, store=store, losses=LOSSES | train.pop("losses", {}), **train)

    return make


def student_of(job: TrainJob) -> tuple[DistilledStudent, Any]:
    checkpoint = job.open_student()
    samples = open_samples(job, checkpoint)
    return build_student(job, checkpoint, samples.reader), samples


def batch_of(job: TrainJob, samples: Any, positions: list[int]) -> Any:
    targets = job.train.losses.needed_targets.values()
    return collate([samples[i] for i in positions], targets=targets, attention_pairs="tqv")


def states_of(model: VisionLanguageModel, example: Any) -> Tensor:
    """Last hidden states [L, D] of one sample alone."""
    batch = collate_sequences([example])
    return model.hidden_states(batch, model.encode_images(batch.images, batch.image_samples_I.tolist()))[0]


def paired(student_PV: Tensor, teacher_PV: Tensor, tokens_of_image: tuple[int, ...], matching: str) -> list[int]:
    """The teacher's token of each of the student's."""
    found, start = [], 0
    for tokens in tokens_of_image:
        own = range(start, start + tokens)
        if matching == "hungarian":
            costs = [[(student_PV[s] - teacher_PV[t]).abs().sum().item() for t in own] for s in own]
            own = [start + int(column) for column in linear_sum_assignment(costs)[1]]  # type: ignore[assignment]
        found += own
        start += tokens
    return found


@pytest.mark.parametrize("matching", ["place", "hungarian"])
@pytest.mark.parametrize("name", NAMES)
def test_terms_and_gradients_are_those_of_both_live_models(
    name: str, matching: str, em_kd_job: Callable[..., TrainJob], checkpoint: Callable[..., Path]
) -> None:
    """Whole logits of both models and plain autograd, sample by sample; the batch is one, with padding."""
    job = em_kd_job(name, EXACT, losses={"vision_matching": matching})
    student, samples = student_of(job)
    teacher = open_checkpoint(str(checkpoint(name, **TEACHER))).load_model()
    num_tokens = compared_tokens(samples.reader, student.model.config)
    found = student(batch_of(job, samples, list(range(len(samples)))))
    totals: dict[str, list[Tensor]] = {"vsd": [], "vlad": []}
    moved = 0
    for position in range(len(samples)):
        example, record = samples[position]
        if not record.has_image:
            for term in totals:
                assert found[term].parts[position] == 0
            continue
        places = [torch.from_numpy(p).long() for p in (record.vision_positions, record.tqv_query_positions)]
        with torch.no_grad():
            theirs = states_of(teacher, example)
            teacher_PV = teacher.head(theirs[places[0]])[:, :num_tokens]
        own = states_of(student.model, example)
        student_PV = student.model.head(own[places[0]])[:, :num_tokens]
        pairs = paired(student_PV.detach(), teacher_PV, record.tokens_of_image, matching)
        moved += sum(number != place for place, number in enumerate(pairs))
        logq, logp = student_PV.log_softmax(-1), teacher_PV[pairs].log_softmax(-1)
        totals["vsd"].append((logq.exp() * (logq - logp)).sum())
        cosines = [
            functional.cosine_similarity(states[vision][:, None], states[places[1]][None], dim=-1)
            for states, vision in ((own, places[0]), (theirs, places[0][pairs]))
        ]
        totals["vlad"].append(functional.smooth_l1_loss(*cosines, reduction="sum"))
        assert found["vlad"].parts[position].item() == pytest.approx(totals["vlad"][-1].item(), rel=1e-3)
    assert (moved > 20) == (matching == "hungarian")
    expected = {term: torch.stack(values).sum() for term, values in totals.items()}
    parameters = [value for value in student.model.parameters() if value.requires_grad]
    for term, total in expected.items():
        assert found[term].count > 10 and total.item() > 0.1
        torch.testing.assert_close(found[term].total, total, rtol=1e-4, atol=1e-5)
        ours, theirs = (
            torch.cat([
                torch.zeros_like(value).flatten() if gradient is None else gradient.flatten()
                for value, gradient in zip(
                    parameters, torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True), strict=True
                )
            ])
            for loss in (found[term].total, total)
        )  # fmt: skip
        assert (ours - theirs).norm() < 1e-3 * theirs.norm(), term


@pytest.mark.parametrize("matching", ["place", "hungarian"])
def test_a_batch_is_the_sum_of_its_samples_and_counts_are_those_of_the_index(
    matching: str, em_kd_job: Callable[..., TrainJob]
) -> None:
    job = em_kd_job("smolvlm", SMALL, losses={"vision_matching": matching})
    student, samples = student_of(job)
    every = list(range(len(samples)))
    whole, singles = student(batch_of(job, samples, every)), [student(batch_of(job, samples, [i])) for i in every]
    counts = GlobalCounts([samples.reader], student.model.config, job.train.losses.weights)
    for term in ("vsd", "vlad"):
        alone = [single[term] for single in singles]
        each = torch.tensor([loss.total.item() for loss in alone])
        torch.testing.assert_close(whole[term].parts, each, rtol=1e-4, atol=1e-6)
        assert [loss.count for loss in alone] == [counts(np.array([i]))[term] for i in every]
        assert whole[term].count == sum(loss.count for loss in alone) > 0
        assert sum(loss.count == 0 for loss in alone) == sum(~samples.reader.has_image) > 0


def test_a_teacher_in_another_order_gives_the_same_losses(em_kd_job: Callable[..., TrainJob]) -> None:
    """With the teacher's vision tokens of each image in another order: the same pairs, so the same losses."""
    job = em_kd_job("qwen3_vl", EXACT, losses={"vision_matching": "hungarian"})
    student, samples = student_of(job)
    every, found = [i for i in range(len(samples)) if samples.reader.has_image[i]], []
    for reverse in (False, True):
        rows = []
        for position in every:
            example, record = samples[position]
            ends = list(itertools.accumulate(record.tokens_of_image, initial=0))
            order = [n for first, end in itertools.pairwise(ends) for n in reversed(range(first, end))]
            if reverse:
                more = {"vision_states": record.more["vision_states"][order]}
                more["vision_text_affinity"] = record.more["vision_text_affinity"][:, order]
                record = type(record).trusted(dict(record.__dict__) | {"more": more})
            rows.append((example, record))
        batch = collate(rows, targets=job.train.losses.needed_targets.values(), attention_pairs="tqv")
        found.append({term: loss.total.item() for term, loss in student(batch).items()})
    assert found[0] == pytest.approx(found[1], rel=1e-5) and found[0]["vsd"] > 0


def test_gradients_arrive_in_one_order_with_and_without_an_image(em_kd_job: Callable[..., TrainJob]) -> None:
    job = em_kd_job("qwen3_vl", SMALL, losses={"vision_matching": "hungarian"})
    student, samples = student_of(job)
    has_image = samples.reader.has_image.tolist()
    orders = []
    for position in (has_image.index(True), has_image.index(False)):
        arrived: list[str] = []
        hooks = [
            value.register_post_accumulate_grad_hook(lambda _, name=name, arrived=arrived: arrived.append(name))
            for name, value in student.named_parameters()
            if value.requires_grad
        ]
        terms = student(batch_of(job, samples, [position]))
        assert (terms["vsd"].count > 0) == (terms["vlad"].count > 0) == has_image[position]
        weighted_total(terms, student.losses.weights, dict.fromkeys(terms, 1)).backward()
        for hook in hooks:
            hook.remove()
        orders.append(arrived)
    assert orders[0] == orders[1] and len(orders[0]) > 10


def test_two_ranks_are_one(
    em_kd_job: Callable[..., TrainJob],
    start_child: Any,
    one_thread: None,
    read_metrics: ReadMetrics,
    tmp_path: Path,
) -> None:
    settings: dict[str, Any] = {"steps": 3, "global_batch": 4, "losses": {"vision_matching": "hungarian"}}
    alone = em_kd_job("qwen3_vl", SMALL, output=tmp_path / "alone", micro_batch=4, **settings)
    train(alone)
    job = em_kd_job("qwen3_vl", SMALL, output=tmp_path / "two", micro_batch=1, **settings)
    run_two(start_child, job)
    found, expected = (read_metrics(one.train.output) for one in (job, alone))
    for line, reference in zip(found, expected, strict=True):
        assert reference["vsd"] > 0 and reference["vlad"] > 0
        for figure, value in reference.items():
            assert line[figure] == (value if value is None else pytest.approx(value, rel=5e-5)), figure
    weights, reference = (load_file(one.train.output / "student" / "model.safetensors") for one in (job, alone))
    for key, value in reference.items():
        assert (weights[key] - value).norm() <= 1e-2 * value.norm() + 1e-6, key


def test_a_killed_run_is_the_unbroken_one_and_both_layouts_train_alike(
    em_kd_job: Callable[..., TrainJob],
    start_child: Any,
    one_thread: None,
    read_metrics: ReadMetrics,
    tmp_path: Path,
) -> None:
    settings: dict[str, Any] = {"steps": 4, "micro_batch": 2, "global_batch": 4, "checkpoint_every": 2}
    settings |= {"gradient_checkpointing": True, "losses": {"vision_matching": "hungarian"}}
    unbroken = em_kd_job("qwen3_vl", SMALL, output=tmp_path / "unbroken", **settings)
    train(unbroken)
    job = em_kd_job("qwen3_vl", SMALL, "webdataset", output=tmp_path / "killed", data_workers=2, **settings)
    ended(start_child(job, ("trainer", "_optimiser_step", 4, signal.SIGKILL)), -signal.SIGKILL)
    ended(start_child(job))
    assert read_metrics(job.train.output) == read_metrics(unbroken.train.output)
    written = [one.train.output / "student" / "model.safetensors" for one in (job, unbroken)]
    assert written[0].read_bytes() == written[1].read_bytes()


@pytest.mark.parametrize(
    ("stored", "losses", "line"),
    [
        (
            {},
            {"vlad": 0},
            r"losses\.vsd is 0\.25, but store .* keeps no target for it; set losses\.vsd to 0 or dump again with",
        ),
        (
            {},
            {"vsd": 0},
            r"losses\.vlad is 25\.0, but store .*; set losses\.vlad to 0 or .* store\.vision_text_affinity$",
        ),
        (
            {"vision_text_affinity": "float16"},
            {"vsd": 0, "vision_matching": "hungarian"},
            r"losses\.vision_matching is hungarian, but store .*; set losses\.vision_matching to 'place' or dump "
            r"again with store\.vision_states$",
        ),
    ],
)
def test_what_a_store_lacks(stored: Any, losses: Any, line: str, em_kd_job: Callable[..., TrainJob]) -> None:
    with pytest.raises(ValueError, match=line) as error:
        train(em_kd_job("qwen3_vl", stored, losses=losses))
    assert "\n" not in str(error.value)
