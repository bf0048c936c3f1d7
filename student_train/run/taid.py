"""TAID's state in a run: where it starts, how each optimiser step moves it, and what checkpoints keep of it."""

from collections.abc import Mapping
from typing import Any

from alignkd.student_train.losses.logits.divergences.taid import CROSS_ENTROPY, SHARE
from alignkd.student_train.objective.logits.taid_schedule import TaidState
from alignkd.student_train.objective.tally import StepTally
from alignkd.student_train.output import TAID_CROSS_ENTROPY, TAID_T
from alignkd.student_train.run.extension import first_run_steps
from alignkd.student_train.run.plan import RunPlan
from alignkd.student_train.run.start import Start

# the key of the state in a checkpoint's `state.json`
KEY = "taid"


class TaidProgress:
    """The state of TAID in one run, the same on every rank; a run without TAID has none.

    In an extension it goes on from the state of the earlier run, and the floor of t takes the steps of the first run of
    the chain: t does not fall when the total becomes larger.

    Args:
        plan: the run.
        start: where it begins.

    Attributes:
        state: decides the next step's t; None for a run without TAID.
    """

    def __init__(self, plan: RunPlan, start: Start) -> None:
        self._config = plan.config.losses.taid_of_logit
        self._floor_steps = first_run_steps(plan.settings)
        self.state = None
        if self._config is not None:
            kept = None if start.checkpoint is None else start.checkpoint.document[KEY]
            self.state = TaidState.at_start(self._config) if kept is None else TaidState.of(kept)

    @property
    def step_values(self) -> dict[str, float]:
        """What the logit loss of the next step needs."""
        return {} if self.state is None else {SHARE: self.state.t}

    def after_step(self, step: int, tally: StepTally) -> dict[str, float | None]:
        """Move the state by the gathered losses of an optimiser step; return the figures of the step.

        Args:
            step: its number, from 0.
            tally: its sums, after `gather`.
        """
        if self._config is None or self.state is None:
            return {}
        used, loss = self.state.t, tally.figures[CROSS_ENTROPY]
        self.state = self.state.after(self._config, loss, progress=step / self._floor_steps)
        return {TAID_T: used, TAID_CROSS_ENTROPY: loss}

    @property
    def in_checkpoint(self) -> Mapping[str, Any]:
        """The entries of `state.json`."""
        return {} if self.state is None else {KEY: self.state.document}
