"""Forward and backward from every kind of store: one device, the CPU's numbers, and no wait that is not known."""

from collections import Counter
from dataclasses import dataclass

import pytest
from golden_jobs import STORES, GoldenJobs, batch_of
from known_waits import MATCHING, MICRO_BATCH, unknown, unmet
from pretend_device import LOG, PretendTensor, Wait, move, pretend_device
from torch import Tensor

from alignkd.student_train.data.batch import TrainBatch
from alignkd.student_train.job import TrainJob
from alignkd.student_train.objective.objective import DistilledStudent, weighted_total
from alignkd.student_train.run.plan import open_samples
from alignkd.student_train.run.student import build_student

ONE, SEVERAL, TEXT = ("ft-0", "ft-2"), ("two", "ft-2", "ft-1"), ("ft-2",)
# Largest relative differences to the CPU's terms, and of a gradient's norm. The ways differ (sums in another order,
# products given in float32), the arithmetic does not. Measured: 2e-7 and 9e-7, 7e-4 and 2e-2.
BOUNDS = {"float32": (1e-6, 1e-5), "bfloat16": (2e-3, 5e-2)}
# `effect` is a difference of differences of probabilities, which leave fewer digits. Measured: 7e-3.
OF_DIFFERENCES = 2e-2
CASES = [
    *((kind, "float32", ONE) for kind in STORES),
    *(
        (kind, "bfloat16", ONE)
        for kind in ("compact", "full", "stem", "sampled_layers", "counterfactual", "states", "em_kd")
    ),
    ("compact", "float32", SEVERAL),
    ("compact", "float32", TEXT),
    ("stem", "float32", SEVERAL),
    ("stem", "float32", TEXT),
    *((kind, "float32", SEVERAL) for kind in ("topk_means", "filtered")),
    ("stem_layers", "float32", SEVERAL),
    ("counterfactual", "float32", SEVERAL),
    ("counterfactual", "float32", TEXT),
    *(("states", "float32", ids) for ids in (SEVERAL, TEXT)),
    ("stem_relations", "float32", TEXT),
    # not in bfloat16: other roundings give other pairs
    ("matched", "float32", SEVERAL),
    ("matched", "float32", TEXT),
]


@dataclass
class Outcome:
    """Terms and gradients of one micro-batch, on the host, and how often the host waited."""

    terms: dict[str, float]
    gradients: dict[str, Tensor]
    waits: Counter[Wait]


def named(value: str | tuple[str, ...]) -> str:
    """A parameter in a test's name."""
    return value if isinstance(value, str) else "+".join(value)


@pytest.mark.parametrize(("kind", "dtype", "ids"), CASES, ids=named)
def test_terms_and_gradients_are_the_cpus(kind: str, dtype: str, ids: tuple[str, ...], jobs: GoldenJobs) -> None:
    job = jobs.train_job(kind, "never", dtype=dtype, gradient_checkpointing=dtype == "bfloat16")
    here, there = one_micro_batch(job, ids)
    terms, gradients = differences(here, there)
    assert here.gradients.keys() == there.gradients.keys()
    compares_passes = "effect" in job.train.losses.weights
    of_terms, of_gradients = BOUNDS[dtype]
    assert terms <= (OF_DIFFERENCES if compares_passes and dtype == "bfloat16" else of_terms)
    assert gradients <= of_gradients
    assert not LOG.unrepeatable, "train.deterministic could not be used"
    matching = MATCHING if job.train.losses.vision_matching == "hungarian" and ids != TEXT else []
    waits = unknown(there.waits, [*MICRO_BATCH, *matching], 1)
    assert not unmet(there.waits, matching)
    assert not waits, "\n".join(waits)


def one_micro_batch(job: TrainJob, ids: tuple[str, ...]) -> tuple[Outcome, Outcome]:
    """Forward and backward of a fresh student, on the CPU and on the pretend device."""
    dataset = open_samples(job, job.open_student())
    student = build_student(job, job.open_student(), dataset.reader)
    batch = batch_of(dataset, student.model.config, job.train, ids)
    if job.train.losses.logit_groups is not None:
        student.group_sizes = (3, 9)  # of a global batch
    here = forward_and_backward(student, batch)
    student.zero_grad()
    with pretend_device() as device:
        move(student)
        LOG.clear()
        return here, forward_and_backward(student, batch.to(device))


def forward_and_backward(student: DistilledStudent, batch: TrainBatch) -> Outcome:
    """One micro-batch, its terms weighted as in training, but not divided by counts."""
    terms, weights = student(batch), student.losses.weights
    weighted_total(terms, weights, dict.fromkeys(weights, 1)).backward()
    gradients = {name: on_host(value.grad) for name, value in student.named_parameters() if value.grad is not None}
    return Outcome({name: float(on_host(term.total)) for name, term in terms.items()}, gradients, LOG.waits.copy())


def differences(here: Outcome, there: Outcome) -> tuple[float, float]:
    """Largest relative difference of a term, and of a gradient."""
    terms = max(abs(there.terms[name] - value) / max(abs(value), 1e-9) for name, value in here.terms.items())
    gradients = max(
        float((there.gradients[name].float() - value.float()).norm() / value.float().norm().clamp(min=1e-9))
        for name, value in here.gradients.items()
    )
    return terms, gradients


def on_host(tensor: Tensor | None) -> Tensor:
    """The values."""
    assert tensor is not None
    return (tensor.host if isinstance(tensor, PretendTensor) else tensor).detach()
