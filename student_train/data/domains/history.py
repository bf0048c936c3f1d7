"""What was measured of the domains of a run so far, and the weights that follow; kept in its checkpoints."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Self

from alignkd.student_train.data.domains.ddk import first_weights, next_weights, perplexity_ratios


@dataclass(frozen=True, kw_only=True)
class DomainHistory:
    """Measurements in order, one for each interval.

    Attributes:
        domains: their names.
        teacher: the teacher's mean negative log-probability of a label in each domain, in nats.
        student: that of the student, for each interval.
        weights: of the domains in each interval.
    """

    domains: tuple[str, ...]
    teacher: tuple[float, ...]
    student: tuple[tuple[float, ...], ...] = ()
    weights: tuple[tuple[float, ...], ...] = ()

    @classmethod
    def of(cls, document: Mapping[str, Any]) -> Self:
        """The history that `document` returned."""
        rows = {name: tuple(map(tuple, document[name])) for name in ("student", "weights")}
        return cls(domains=tuple(document["domains"]), teacher=tuple(document["teacher"]), **rows)

    @property
    def document(self) -> dict[str, Any]:
        """JSON-able."""
        return asdict(self)

    def after(self, student: Sequence[float], *, alpha: float, temperature: float) -> Self:
        """The history with one more measurement of the student; `alpha` and `temperature` as in `ddk`."""
        ratios = perplexity_ratios(student, self.teacher, temperature)
        weights = next_weights(self.weights[-1], ratios, alpha) if self.weights else first_weights(ratios)
        return replace(self, student=(*self.student, tuple(student)), weights=(*self.weights, tuple(weights.tolist())))
