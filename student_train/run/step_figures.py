"""The line of one step in `metrics.jsonl`."""

from collections.abc import Mapping

import torch

from alignkd.student_train.checkpoints.checkpoint import TrainState
from alignkd.student_train.engine.engine import StepOutcome
from alignkd.student_train.metrics.file import Metrics, peak_memory_mib
from alignkd.student_train.objective.tally import StepTally
from alignkd.student_train.output import (
    ATTENTION_WEIGHT,
    BY_SOURCE,
    DOMAIN_WEIGHT,
    KIND_PREFIX,
    PREFERENCE_FIGURES,
    attention_of_layer,
)
from alignkd.student_train.run.plan import StepPlan


def step_figures(
    state: TrainState,
    step: StepPlan,
    tally: StepTally,
    outcome: StepOutcome,
    *,
    taid: Mapping[str, float | None],
    device: torch.device,
) -> Metrics:
    """The line of the step that led to `state`. `output.FIGURES` lists every name that is not a loss.

    Args:
        taid: figures of TAID, {} for a run without it.
        device: device of the first rank, whose memory is noted.
    """
    return {
        "step": state.step,
        "loss": tally.loss,
        **tally.means,
        **{attention_of_layer(layer): mean for layer, mean in tally.by_layer.items()},
        "samples_seen": state.samples_seen,
        "learning_rate": step.learning_rate,
        **({} if step.attention_weight is None else {ATTENTION_WEIGHT: step.attention_weight}),
        **({} if tally.preference is None else dict(zip(PREFERENCE_FIGURES, tally.preference, strict=True))),
        **taid,
        "grad_norm": outcome.grad_norm,
        "skipped": not outcome.applied,
        "seconds": tally.seconds,
        "tokens_per_second": step.tokens / tally.seconds,
        "padding": step.division.padded_positions / step.tokens,
        "wait_share": tally.wait_share,
        "peak_memory_mib": peak_memory_mib(device),
        **{f"{KIND_PREFIX}{kind}": count for kind, count in step.kinds.items()},
        **({BY_SOURCE: _with_weights(tally.by_source, step.domain_weights)} if tally.by_source else {}),
    }


def _with_weights(by_source: Mapping[str, Metrics], weights: Mapping[str, float]) -> dict[str, Metrics]:
    """The figures of each source, with its weight where weights follow the student."""
    return {
        name: {**figures, **({DOMAIN_WEIGHT: weights[name]} if name in weights else {})}
        for name, figures in by_source.items()
    }
