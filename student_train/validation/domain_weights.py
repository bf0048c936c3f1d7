"""Measures the domains of a run, at its beginning and after every interval, and sets their weights."""

import logging
import math
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from alignkd.storage import StoreReader
from alignkd.storage.tools.select.scan import mean_nlls
from alignkd.student_train.checkpoints.checkpoint import DOMAIN_WEIGHTS
from alignkd.student_train.data.domains.history import DomainHistory
from alignkd.student_train.data.domains.order import DomainOrder
from alignkd.student_train.data.loader import load_batch
from alignkd.student_train.distributed.interrupt import StopSignals
from alignkd.student_train.domain_weights_config import DomainWeights
from alignkd.student_train.engine.engine import Engine
from alignkd.student_train.errors import TrainError
from alignkd.student_train.objective.settings import LossConfig
from alignkd.student_train.objective.terms import TERMS
from alignkd.student_train.run.plan import RunPlan
from alignkd.student_train.run.portions.portion import Portion
from alignkd.student_train.run.start import Start
from alignkd.student_train.validation.evaluation import evaluate
from alignkd.student_train.validation.samples import Prepared, ValidationSamples

logger = logging.getLogger(__name__)
# the term whose mean is the student's negative log-probability of a label
LABELS = "supervised"


def open_domain_weighing(plan: RunPlan, start: Start) -> "DomainWeighing | None":
    """The measurements of a run as its checkpoint left them, the same on ALL ranks; None if weights stay.

    Raises:
        StoreError: a store does not keep what the teacher's side needs.
    """
    settings = plan.config.domain_weights
    if settings is None:
        return None
    kept = None if start.checkpoint is None else start.checkpoint.document.get(DOMAIN_WEIGHTS)
    if kept is not None:
        return DomainWeighing(plan, settings, DomainHistory.of(kept))
    names = tuple(portion.name for portion in plan.mixture.portions)
    teacher: list[float] = plan.ranks.on_first(lambda: [_teacher_nll(plan, one) for one in plan.mixture.portions])
    return DomainWeighing(plan, settings, DomainHistory(domains=names, teacher=tuple(teacher)))


class DomainWeighing:
    """The measurements of one run.

    Attributes:
        history: what they have found so far.
        interrupted: a stop was requested during a measurement, which is repeated after the resume.
    """

    def __init__(self, plan: RunPlan, settings: DomainWeights, history: DomainHistory) -> None:
        self.plan, self.settings, self.history = plan, settings, history
        self.interrupted = False
        assert isinstance(plan.order, DomainOrder)
        self._order = plan.order
        self._order.restore(history.weights)
        self._samples = [_samples_of(plan, portion) for portion in plan.mixture.portions]

    @property
    def document(self) -> dict[str, Any]:
        """What checkpoints keep."""
        return self.history.document

    def before_step(self, engine: Engine, step: int, signals: StopSignals) -> None:
        """Measure the state after `step` steps, if the next step begins an interval; called by ALL ranks.

        Raises:
            TrainError: the student's loss in a domain is not finite.
        """
        if step == self.plan.config.num_steps or self._order.knows(step):
            return
        student: list[float] = []
        for portion, samples in zip(self.plan.mixture.portions, self._samples, strict=True):
            found = evaluate(
                engine.student,
                samples,
                self.plan.ranks,
                limit=self.plan.config.micro_batch_limit,
                workers=self.plan.config.data_workers,
                stop_requested=lambda: signals.stop_requested,
            )
            if found is None:
                self.interrupted = True
                return
            mean = found.means[LABELS]
            if mean is None or not math.isfinite(mean):
                raise TrainError(
                    f"train.domain_weights: the student's loss in domain {portion.name} is {mean} at step {step}; "
                    "lower train.learning_rate, or leave domain_weights out"
                )
            student.append(mean)
        self.history = self.history.after(student, alpha=self.settings.alpha, temperature=self.settings.temperature)
        self._order.add(self.history.weights[-1])
        if self.plan.ranks.is_first:
            logger.info("step %d: %s", step, _shown(self.history))


def _samples_of(plan: RunPlan, portion: Portion) -> ValidationSamples:
    """The samples that measure a domain, with cross-entropy alone."""
    load = partial(load_batch, plan.samples, targets=(), stem=None)
    return ValidationSamples(
        described=f"{len(portion.measured)} samples of domain {portion.name}",
        identity=portion.name,
        losses=_labels_alone(plan.config.losses),
        positions=portion.measured,
        lengths=plan.samples.lengths[portion.measured],
        prepare=lambda chosen: Prepared(batch=load(chosen) if len(chosen) else None),
        has_targets=False,
    )


def _labels_alone(losses: LossConfig) -> LossConfig:
    """Plain cross-entropy with the labels."""
    return losses.for_validation.model_copy(update={**dict.fromkeys(TERMS, 0.0), LABELS: 1.0})


def _teacher_nll(plan: RunPlan, portion: Portion) -> float:
    """The teacher's mean negative log-probability of a label over the samples that measure a domain."""
    number = [store.shown_name for store in plan.mixture.stores].index(portion.store)
    reader: StoreReader = plan.samples.readers[number]
    own: NDArray[np.int64] = portion.measured - int(plan.samples.positions_of(number)[0])
    labels = reader.num_supervised[own]
    return float((mean_nlls(reader, own) * labels).sum() / labels.sum())


def _shown(history: DomainHistory) -> str:
    parts = zip(history.domains, history.weights[-1], history.student[-1], history.teacher, strict=True)
    shown = (f"{name} {weight:.3f} ({own:.3f}, {theirs:.3f})" for name, weight, own, theirs in parts)
    return f"weights of domains (nats per label of student, teacher): {', '.join(shown)}"
