"""What a check of the teacher came to."""

from dataclasses import dataclass
from typing import Literal

Outcome = Literal["passed", "failed", "not checked"]


@dataclass(frozen=True, kw_only=True)
class SanityFinding:
    """One check and its outcome.

    Attributes:
        name: `batch`, `labels` or `images`.
        message: one line with the figures, and of a check that failed what to do.
    """

    name: str
    outcome: Outcome
    message: str
