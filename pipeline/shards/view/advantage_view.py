"""The visual advantage of one record: figures over its supervised positions."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from alignkd.storage.record.record import Record
from alignkd.storage.schema.targets.counterfactual import ADVANTAGE
from alignkd.storage.tools.verify.advantage import advantage_sums


def advantage_figures(record: Record) -> dict[str, Any] | None:
    """Mean, smallest and largest value in nats, and the share above 0.1; None without a counterfactual pass."""
    sums, stored = advantage_sums(record), record.more.get(ADVANTAGE)
    if not sums.positions or not isinstance(stored, np.ndarray):
        return None
    return {
        "positions": sums.positions,
        "mean": sums.mean,
        "smallest": float(stored.min()),
        "largest": float(stored.max()),
        "share_above_0_1": sums.clear / sums.positions,
    }


def advantage_lines(figures: Mapping[str, Any] | None) -> list[str]:
    """The figures on one line; nothing without any."""
    if figures is None:
        return []
    return [
        f"{'visual advantage':<24}mean {figures['mean']:.3g} nats at {figures['positions']} positions, smallest "
        f"{figures['smallest']:.3g}, largest {figures['largest']:.3g}, above 0.1 at {figures['share_above_0_1']:.1%}"
    ]
