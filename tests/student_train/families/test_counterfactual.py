"""Training on a counterfactual store: the terms of the live models, two ranks, resumed runs, both layouts."""

import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny_data
import torch
from counterfactual_passes import focus_tokens, logprobs_without
from processes_of_two import ended, run_two
from safetensors.torch import load_file
from torch import Tensor

from alignkd.student_train.data.collate import collate
from alignkd.student_train.job import TrainJob
from alignkd.student_train.objective.counterfactual_terms import drawn_terms
from alignkd.student_train.objective.objective import DistilledStudent, weighted_total
from alignkd.student_train.run.checks.fit import compared_tokens
from alignkd.student_train.run.plan import open_samples
from alignkd.student_train.run.student import build_student
from alignkd.student_train.trainer import train
from alignkd.vlm.families.open import open_checkpoint

ReadMetrics = Callable[[Path], list[dict[str, Any]]]
LOSSES = {
    **{"attention": 0, "vision_all": 0, "vision_top": 0, "logit": 0},
    **{"supervised": 0.5, "effect": 2.0, "keep": 3.0},
}
# log-probabilities are stored in float16, masses are right within 1e-3
WHOLE = {"remove": "focus", "share": 0.3, "entries": 4096, "mass": 1.0}
SMALL = {"remove": "focus", "share": 0.3, "entries": 16}
TEACHER = {"seed": 3, "hidden_size": 64, "heads": 4}
NAMES = ["qwen3_vl", "smolvlm"]


@pytest.fixture
def counterfactual_job(
    family_job: Callable[..., TrainJob], family_store: Callable[..., Path]
) -> Callable[..., TrainJob]:
    """`counterfactual_job("qwen3_vl", SMALL, backend="zarr", **train settings)`."""

    def make(name: str, settings: dict[str, Any], backend: str = "zarr", **train: Any) -> TrainJob:
        kept = {"attention": "none", "vision_top": "none", "vision_all": "none", "logits": {"kind": "none"}}
        store = family_store(name, counterfactual=settings, backend=backend, **kept)
        return family_job(name, store=store, losses=LOSSES | train.pop("losses", {}), **train)

    return make


def student_of(job: TrainJob) -> tuple[DistilledStudent, Any]:
    checkpoint = job.open_student()
    samples = open_samples(job, checkpoint)
    return build_student(job, checkpoint, samples.reader), samples


def batch_of(samples: Any, positions: list[int]) -> Any:
    return collate([samples[i] for i in positions], targets=["counterfactual"], attention_pairs="tqv")


@pytest.mark.parametrize("name", NAMES)
def test_terms_and_gradients_are_those_of_both_live_models(
    name: str, counterfactual_job: Callable[..., TrainJob], checkpoint: Callable[..., Path], data: tiny_data.TinyData
) -> None:
    """Whole distributions of both models, every pass by loops over its tokens."""
    job = counterfactual_job(name, WHOLE)
    student, samples = student_of(job)
    teacher = open_checkpoint(str(checkpoint(name, **TEACHER))).load_model()
    num_tokens = compared_tokens(samples.reader, student.model.config)
    student.eval()
    found = student(batch_of(samples, list(range(len(samples)))))
    totals: dict[str, list[Tensor]] = {"effect": [], "keep": []}
    for position in range(len(samples)):
        example, record = samples[position]
        if not record.has_image:
            continue
        with torch.no_grad():
            evidence = focus_tokens(teacher, example, 0.3)
            full, removed = (logprobs_without(teacher, example, which, num_tokens).exp() for which in ([], evidence))
        rest = [n for n in range(len(record.vision_positions)) if n not in evidence]
        own = [logprobs_without(student.model, example, which, num_tokens).exp() for which in ([], evidence, rest)]
        totals["effect"].append(((full - removed) - (own[0] - own[1])).abs().sum() / 4)
        totals["keep"].append((full - own[2]).abs().sum() / 2)
    expected = {term: torch.stack(values).sum() for term, values in totals.items()}
    parameters = [value for value in student.model.parameters() if value.requires_grad]
    for term, total in expected.items():
        assert found[term].count > 10 and total.item() > 1
        torch.testing.assert_close(found[term].total, total, rtol=2e-4, atol=1e-4)
        ours, theirs = (
            torch.cat([
                torch.zeros_like(value).flatten() if gradient is None else gradient.flatten()
                for value, gradient in zip(
                    parameters, torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True), strict=True
                )
            ])
            for loss in (found[term].total, total)
        )  # fmt: skip
        # the sign of a difference near 0 is that of the rounding of float16
        assert (ours - theirs).norm() < 0.02 * theirs.norm(), term
        torch.testing.assert_close(found[term].parts[found[term].parts > 0].sum(), total.detach(), rtol=2e-4, atol=1e-4)


def test_the_mean_of_both_draws_is_the_sum_of_both_terms(counterfactual_job: Callable[..., TrainJob]) -> None:
    student, samples = student_of(counterfactual_job("qwen3_vl", SMALL))
    batch = batch_of(samples, [0, 1, 2, 3])
    counts = {"supervised": 10, "effect": 7, "keep": 7}
    gradients: dict[str, Tensor] = {}
    steps = {drawn_terms(LOSSES, seed=0, step=step)[0]: step for step in range(10)}
    assert steps.keys() == {"effect", "keep"}
    for name, step in [("both", None), *steps.items()]:
        student.train(step is not None)
        if step is not None:
            student.start_step(step, seed=0)
        terms = student(batch)
        if step is not None:
            other = "keep" if name == "effect" else "effect"
            assert terms[other].total.item() == 0 and terms[other].count == terms[name].count > 0
        student.zero_grad()
        weighted_total(terms, student.losses.weights, counts).backward()
        gradients[name] = torch.cat([p.grad.flatten().clone() for p in student.model.parameters() if p.requires_grad])  # type: ignore[union-attr]
    mean = (gradients["effect"] + gradients["keep"]) / 2
    torch.testing.assert_close(mean, gradients["both"], rtol=1e-4, atol=1e-6)
    assert (gradients["effect"] - gradients["both"]).norm() > 0.01 * mean.norm()


def test_draws_are_fair_and_depend_on_seed_and_step_alone() -> None:
    drawn = [drawn_terms(LOSSES, seed=5, step=step) for step in range(400)]
    assert drawn == [drawn_terms(LOSSES, seed=5, step=step) for step in range(400)]
    assert 160 < sum(terms == ("keep",) for terms in drawn) < 240
    assert drawn != [drawn_terms(LOSSES, seed=6, step=step) for step in range(400)]
    assert drawn_terms({"keep": 1.0}, seed=5, step=0) == ("keep",) and drawn_terms({}, seed=5, step=0) == ()


def test_gradients_arrive_in_one_order_with_and_without_an_image(counterfactual_job: Callable[..., TrainJob]) -> None:
    student, samples = student_of(counterfactual_job("qwen3_vl", SMALL))
    has_image = samples.reader.has_image.tolist()
    orders = []
    for position in (has_image.index(True), has_image.index(False)):
        arrived: list[str] = []
        hooks = [
            value.register_post_accumulate_grad_hook(lambda _, name=name, arrived=arrived: arrived.append(name))
            for name, value in student.named_parameters()
            if value.requires_grad
        ]
        terms = student(batch_of(samples, [position]))
        assert (terms["effect"].count > 0) == has_image[position]
        weighted_total(terms, student.losses.weights, dict.fromkeys(terms, 1)).backward()
        for hook in hooks:
            hook.remove()
        orders.append(arrived)
    assert orders[0] == orders[1] and len(orders[0]) > 10


def test_two_ranks_are_one(
    counterfactual_job: Callable[..., TrainJob],
    start_child: Any,
    one_thread: None,
    read_metrics: ReadMetrics,
    tmp_path: Path,
) -> None:
    settings: dict[str, Any] = {"steps": 4, "global_batch": 4}
    alone = counterfactual_job("qwen3_vl", SMALL, output=tmp_path / "alone", micro_batch=4, **settings)
    train(alone)
    job = counterfactual_job("qwen3_vl", SMALL, output=tmp_path / "two", micro_batch=1, **settings)
    run_two(start_child, job)
    found, expected = (read_metrics(one.train.output) for one in (job, alone))
    assert any(line["samples_text_only"] for line in expected)
    assert any(line["effect"] for line in expected) and any(line["keep"] for line in expected)
    for line, reference in zip(found, expected, strict=True):
        for figure, value in reference.items():
            assert line[figure] == (value if value is None else pytest.approx(value, rel=5e-5)), figure
    weights, reference = (load_file(one.train.output / "student" / "model.safetensors") for one in (job, alone))
    for key, value in reference.items():
        assert (weights[key] - value).norm() <= 1e-2 * value.norm() + 1e-6, key


def test_a_killed_run_is_the_unbroken_one_and_both_layouts_train_alike(
    counterfactual_job: Callable[..., TrainJob],
    start_child: Any,
    one_thread: None,
    read_metrics: ReadMetrics,
    tmp_path: Path,
) -> None:
    settings: dict[str, Any] = {"steps": 4, "micro_batch": 2, "global_batch": 4, "checkpoint_every": 2}
    settings |= {"gradient_checkpointing": True}
    unbroken = counterfactual_job("qwen3_vl", SMALL, output=tmp_path / "unbroken", **settings)
    train(unbroken)
    job = counterfactual_job("qwen3_vl", SMALL, "webdataset", output=tmp_path / "killed", data_workers=2, **settings)
    ended(start_child(job, ("trainer", "_optimiser_step", 4, signal.SIGKILL)), -signal.SIGKILL)
    ended(start_child(job))
    assert read_metrics(job.train.output) == read_metrics(unbroken.train.output)
    written = [one.train.output / "student" / "model.safetensors" for one in (job, unbroken)]
    assert written[0].read_bytes() == written[1].read_bytes()


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        (None, r"losses.effect is 2.0, but the teacher's counterfactual pass is not stored; set it to 0 or dump with"),
        ({"remove": "image"}, r"losses.keep is 3.0, but the counterfactual pass replaced the whole image .* focus$"),
    ],
)
def test_what_a_store_lacks(
    settings: Any, line: str, counterfactual_job: Callable[..., TrainJob], family_job: Callable[..., TrainJob]
) -> None:
    job = family_job("qwen3_vl", losses=LOSSES) if settings is None else counterfactual_job("qwen3_vl", settings)
    with pytest.raises(ValueError, match=line):
        train(job)
