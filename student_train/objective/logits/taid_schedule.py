"""TAID's share t of the teacher: settings, and the state from which the next step's t follows.

After the optimiser step of number i (from 0) of S steps, with L the mean cross-entropy of the intermediate teacher and
the student over the GLOBAL batch, L' that of the step before, and sigma the logistic function:

    momentum <- beta momentum + (1 - beta) (L' - L) / L'
    floor     = start + (end - start) min(i / S, 1)
    t        <- min(end, max(floor, t + alpha sigma(momentum) (1 - t)))

Without `adaptive`, t is the floor. All ranks know L, so they have the same t. The authors' code uses each rank's own
L, so that t differs between ranks.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from alignkd.vlm.settings import Settings

TaidForm = Literal["full", "bucketed"]
# keeps the relative change finite where the loss before was 0, as in the authors' code
SMALLEST_LOSS = 1e-15


class TaidConfig(Settings):
    """The intermediate teacher of TAID: a geometric mixture of student and teacher, whose share t of the teacher rises.

    Attributes:
        start: t of the first step.
        end: largest t, and that at which the linear floor of t ends after the last step.
        rate: factor of the adaptive rise of t in a step (alpha).
        momentum: share of the earlier steps in the mean relative fall of the loss, by which t rises faster (beta).
        adaptive: whether t may rise faster than its floor, which goes linearly from `start` to `end`.
        form: `full` mixes all tokens, which needs `full` or `hidden` logits. `bucketed` mixes the tokens that a `topk`
            or `nucleus` store keeps and one bucket for all others. It is another loss, and no bound of the full form:
            the bucket gets more mass than its tokens would have in the full mixture.
    """

    start: float = Field(default=0.4, ge=0, lt=1)
    end: float = Field(default=1.0, gt=0, le=1)
    rate: float = Field(default=5e-4, ge=0, le=1)
    momentum: float = Field(default=0.99, ge=0, lt=1)
    adaptive: bool = True
    form: TaidForm = "full"

    @model_validator(mode="after")
    def _rises(self) -> Self:
        if self.start > self.end:
            raise ValueError(f"start {self.start} is above end {self.end}, but t rises; lower start or raise end")
        return self

    @model_validator(mode="after")
    def _rate_is_used(self) -> Self:
        """Values that differ from the defaults: a resolved configuration names every key."""
        for name in ("rate", "momentum"):
            value = getattr(self, name)
            if value == type(self).model_fields[name].default:
                continue
            if not self.adaptive:
                raise ValueError(f"adaptive is false, so {name} {value} is not used; leave {name} out or set adaptive")
            if self.start == self.end:
                raise ValueError(
                    f"start and end are both {self.start}, so t stays and {name} {value} is not used; leave {name} out "
                    "or raise end"
                )
        return self

    def floor(self, progress: float) -> float:
        """The smallest t after a share of the steps, which may exceed 1."""
        return self.end if progress >= 1 else self.start + (self.end - self.start) * progress


@dataclass(frozen=True, kw_only=True)
class TaidState:
    """What decides the next t; kept in checkpoints, the same on every rank.

    Attributes:
        t: share of the teacher in the next step.
        loss: cross-entropy of the last step in which it was finite; None before there is one.
        momentum: mean relative fall of the loss.
    """

    t: float
    loss: float | None = None
    momentum: float = 0.0

    @classmethod
    def at_start(cls, config: TaidConfig) -> Self:
        """The state before the first step."""
        return cls(t=config.start)

    @classmethod
    def of(cls, document: Mapping[str, Any]) -> Self:
        """The state that `document` returned."""
        return cls(**document)

    @property
    def document(self) -> dict[str, Any]:
        """JSON-able; floats keep every bit in JSON."""
        return asdict(self)

    def after(self, config: TaidConfig, loss: float | None, *, progress: float) -> Self:
        """The state after an optimiser step.

        Args:
            config: settings.
            loss: cross-entropy of the step, the mean over the global batch. If it is None or not finite, only the floor
                moves t: a step with an overflow must not decide all later ones.
            progress: optimiser steps BEFORE this one as a share of the steps that the floor takes.
        """
        floor = config.floor(progress)
        if loss is None or not math.isfinite(loss):
            return replace(self, t=self._raised(config, floor))
        if self.loss is None:
            return replace(self, t=self._raised(config, floor), loss=loss)
        fall = (self.loss - loss) / (self.loss + SMALLEST_LOSS)
        momentum = config.momentum * self.momentum + (1 - config.momentum) * fall
        t = self.t + config.rate * _logistic(momentum) * (1 - self.t) if config.adaptive else floor
        return replace(self, t=self._raised(config, max(t, floor)), loss=loss, momentum=momentum)

    def _raised(self, config: TaidConfig, t: float) -> float:
        """`t` within `end`; it never falls, also in an extension whose floor has ended."""
        return min(config.end, max(self.t, t))


def _logistic(value: float) -> float:
    """1 / (1 + exp(-value)) without overflow."""
    if value >= 0:
        return 1 / (1 + math.exp(-value))
    return math.exp(value) / (1 + math.exp(value))
