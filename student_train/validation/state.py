"""What the validations of a run have found so far; kept in its checkpoints."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Self

NEVER = -1


@dataclass(frozen=True, kw_only=True)
class ValidationState:
    """The best state so far, and how long ago the figure improved.

    Attributes:
        samples: identifies the validated samples.
        last_step, last: step of the last validation, -1 before the first one, and the figure's value there; None if it
            was not finite.
        best_step, best: step of the lowest value, and the value; None before there is one.
        reference: the value from which `patience` counts.
        waited: validations in a row without improvement of `reference` by `min_delta`.
    """

    samples: str
    last_step: int = NEVER
    last: float | None = None
    best_step: int | None = None
    best: float | None = None
    reference: float | None = None
    waited: int = 0

    @classmethod
    def of(cls, document: Mapping[str, Any]) -> Self:
        """The state that `document` returned."""
        return cls(**document)

    @property
    def document(self) -> dict[str, Any]:
        """JSON-able."""
        return asdict(self)

    def after(self, step: int, value: float | None, *, min_delta: float, is_candidate: bool) -> Self:
        """The state after the validation of a step, whose figure has this value.

        Args:
            is_candidate: whether this step may be the best; the state from which a run begins has no checkpoint in it.
        """
        value = None if value is None or not math.isfinite(value) else value
        found = replace(self, last_step=step, last=value)
        if not is_candidate:
            return found
        if value is not None and (self.best is None or value < self.best):
            found = replace(found, best_step=step, best=value)
        if value is not None and (self.reference is None or value < self.reference - min_delta):
            return replace(found, reference=value, waited=0)
        return replace(found, waited=self.waited + 1)

    def without_best(self) -> Self:
        """The state whose best checkpoint is gone: the best is chosen among later validations."""
        return replace(self, best_step=None, best=None)
