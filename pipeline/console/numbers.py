"""Numbers as options of commands."""

import math
from typing import Any

import click


class FiniteFloat(click.FloatRange):
    """A finite number within bounds: a comparison with NaN is false, so it would pass every bound and keep nothing."""

    name = "float"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The number; the command ends with a message about anything else."""
        found = super().convert(value, param, ctx)
        if not math.isfinite(found):
            self.fail(f"{found} is not finite, expected a number", param, ctx)
        return found
