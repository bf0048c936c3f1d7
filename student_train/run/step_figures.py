"""What a step's line in `metrics.jsonl` holds."""

from collections.abc import Mapping

import torch

from alignkd.student_train.data.sample_kinds import PREFIX
from alignkd.student_train.engine.engine import StepOutcome
from alignkd.student_train.metrics.file import Metrics, peak_memory_mib
from alignkd.student_train.objective.tally import StepTally
from alignkd.student_train.run.checkpoint import TrainState


def step_figures(
    state: TrainState,
    tally: StepTally,
    outcome: StepOutcome,
    *,
    learning_rate: float,
    tokens: int,
    kinds: Mapping[str, int],
    device: torch.device,
) -> Metrics:
    """The line of the step that led to `state`.

    Args:
        learning_rate: of the decoder.
        tokens: in the global batch, padding left out.
        kinds: samples of the global batch by kind.
        device: of the first rank, whose memory is noted.
    """
    return {
        "step": state.step,
        "loss": tally.loss,
        **tally.means,
        "samples_seen": state.samples_seen,
        "learning_rate": learning_rate,
        "grad_norm": outcome.grad_norm,
        "skipped": not outcome.applied,
        "seconds": tally.seconds,
        "tokens_per_second": tokens / tally.seconds,
        "wait_share": tally.wait_share,
        "peak_memory_mib": peak_memory_mib(device),
        **{f"{PREFIX}{kind}": count for kind, count in kinds.items()},
    }
