"""Settings of a step, and its figures and problems."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Check:
    """One run of a step.

    Attributes:
        device: `cuda` or `cpu`.
        tiny: use small sizes.
        out: folder for files of the step.
        figures: name -> measured value.
        problems: one line per problem.
    """

    device: str
    tiny: bool
    out: Path
    figures: dict[str, Any] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    def expect(self, holds: bool, problem: str) -> None:
        """Record a problem unless the condition holds."""
        if not holds:
            self.problems.append(problem)

    def at_most(self, name: str, value: float, bound: float) -> None:
        """Record a figure, and a problem if it is above its bound or NaN."""
        self.figures[name] = float(f"{value:.3g}")
        self.expect(value <= bound, f"{name} is {value:.3g}, expected at most {bound:g}")

    def line(self) -> dict[str, Any]:
        """The step's line of output."""
        problem = {"problem": "; ".join(self.problems)} if self.problems else {}
        return {"ok": not self.problems, "figures": self.figures, **problem}
