"""The parameter groups of the optimiser: by learning rate, and by the bits of their moments."""

from typing import Any

from torch import nn

from alignkd.student_train.config import TrainConfig
from alignkd.student_train.objective.objective import DistilledStudent

MODEL_PREFIX = "model."
ADAPTER_PREFIX = "adapters."
# Key of a group of `adamw_8bit`: 8 or 32 bits for each value of a moment.
MOMENT_BITS = "moment_bits"
# Smaller tensors keep moments in 32 bits: they take little memory, and biases and norms have few values for a scale.
SMALLEST_IN_8_BITS = 4096


def parameter_groups(student: DistilledStudent, config: TrainConfig) -> list[dict[str, Any]]:
    """Trained parameters by learning rate: projector, adapters, everything else; empty groups are left out.

    With `adamw_8bit` each group is divided once more, into tensors whose moments take 8 bits and others.
    """
    named = [(name, value) for name, value in student.named_parameters() if value.requires_grad]
    projector = tuple(MODEL_PREFIX + prefix for prefix in student.model.projector_prefixes)
    rates: dict[tuple[str, ...], float] = {
        projector: config.learning_rate if (rate := config.projector_learning_rate) is None else rate,
        (ADAPTER_PREFIX,): config.learning_rate if (rate := config.adapter_learning_rate) is None else rate,
    }
    groups: list[dict[str, Any]] = [
        {"params": [value for name, value in named if name.startswith(prefixes)], "lr": rate}
        for prefixes, rate in rates.items()
    ]
    rest = [value for name, value in named if not name.startswith((*projector, ADAPTER_PREFIX))]
    groups.append({"params": rest, "lr": config.learning_rate})
    if config.optimizer == "adamw_8bit":
        groups = _by_moment_bits(student, groups)
    return [group for group in groups if group["params"]]


def _by_moment_bits(student: nn.Module, groups: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Embeddings keep 32 bits, as in the Trainer of transformers: few of their rows get a gradient in a step."""
    embeddings = {id(module.weight) for module in student.modules() if isinstance(module, nn.Embedding)}
    divided = []
    for group in groups:
        bits = {id(value): 32 if id(value) in embeddings or value.numel() < SMALLEST_IN_8_BITS else 8
                for value in group["params"]}  # fmt: skip
        divided += [
            {**group, "params": [value for value in group["params"] if bits[id(value)] == wanted], MOMENT_BITS: wanted}
            for wanted in (8, 32)
        ]
    return divided
