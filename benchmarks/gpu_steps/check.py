"""What a step is given, and where it notes what it finds."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Check:
    """One run of a step.

    Attributes:
        device: `cuda` or `cpu`.
        tiny: less of everything.
        out: a folder for what the step makes.
        figures: what was measured, by name.
        problems: what is wrong, a line each.
    """

    device: str
    tiny: bool
    out: Path
    figures: dict[str, Any] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    def expect(self, holds: bool, problem: str) -> None:
        """Note a problem unless something holds."""
        if not holds:
            self.problems.append(problem)

    def at_most(self, name: str, value: float, bound: float) -> None:
        """Note a figure, and a problem where it is above its bound or NaN."""
        self.figures[name] = float(f"{value:.3g}")
        self.expect(value <= bound, f"{name} is {value:.3g}, expected at most {bound:g}")

    def line(self) -> dict[str, Any]:
        """The step's line of output."""
        problem = {"problem": "; ".join(self.problems)} if self.problems else {}
        return {"ok": not self.problems, "figures": self.figures, **problem}
