"""The objective of a planned training: weights and settings of its losses, as presets and explicit keys give them."""

from collections.abc import Mapping
from typing import Any

from alignkd.student_train.config import TrainConfig


def planned_objective(train: TrainConfig | None) -> dict[str, Any] | None:
    """The preset, the weights above 0, and the settings that are not the defaults; None without a training."""
    if train is None:
        return None
    weights, settings = train.losses.weights, train.losses.chosen_settings
    return {"preset": train.preset, "weights": weights, "settings": settings}


def objective_line(objective: Mapping[str, Any]) -> str:
    """The same as one line of text."""
    preset = "" if objective["preset"] is None else f"preset {objective['preset']}: "
    weights = ", ".join(f"{name} {weight:g}" for name, weight in objective["weights"].items())
    settings = "".join(f", {name} {_shown(value)}" for name, value in objective["settings"].items())
    return f"losses    {preset}{weights}{settings}"


def _shown(value: Any) -> str:
    if not isinstance(value, Mapping):
        return f"{value:g}" if isinstance(value, float) else str(value)
    return f"{{{', '.join(f'{key}: {_shown(inner)}' for key, inner in value.items())}}}"
