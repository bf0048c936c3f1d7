"""What the vision tower of a model of transformers returned for the images of a batch, for a stem to use again."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers.utils import ModelOutput

from alignkd.vlm.inputs.batch import ImageTensors


@dataclass(frozen=True, kw_only=True)
class TowerFeatures:
    """`Vision.features` of models of transformers.

    Attributes:
        images, samples: as for `VisionLanguageModel.encode_images`.
        joined: as for `ImageEncoder`: how the images are divided into calls.
        outputs: what the tower returned in each call, without gradient.
    """

    images: Sequence[ImageTensors]
    samples: Sequence[int] | None
    joined: bool
    outputs: tuple[ModelOutput, ...]


@contextmanager
def recorded_outputs(tower: nn.Module, layers: Sequence[int]) -> Iterator[list[ModelOutput]]:
    """Keep what the tower returns inside the block.

    Args:
        layers: numbers of the hidden states that are kept; all others are released.
    """
    outputs: list[ModelOutput] = []
    handle = tower.register_forward_hook(lambda _, __, output: outputs.append(_kept(output, layers)))
    try:
        yield outputs
    finally:
        handle.remove()


def feature_layers(config: Any) -> tuple[int, ...]:
    """Numbers of the tower's hidden states that a model's projector may use, as its configuration names them."""
    found = getattr(config, "vision_feature_layer", None)
    if found is None:
        return ()
    return (found,) if isinstance(found, int) else tuple(found)


def copied(output: ModelOutput, dtype: torch.dtype) -> ModelOutput:
    """A copy, because models write into the output of their tower; floating tensors are in `dtype`."""
    return type(output)(**{name: _cast(value, dtype) for name, value in output.items()})


def _kept(output: Any, layers: Sequence[int]) -> ModelOutput:
    assert isinstance(output, ModelOutput), f"the vision tower returned a {type(output).__name__}"
    kept: dict[str, Any] = {name: value.detach() for name, value in output.items() if isinstance(value, Tensor)}
    if (states := output.get("hidden_states")) is not None:
        wanted = {layer % len(states) for layer in layers}
        kept["hidden_states"] = tuple(
            state.detach() if number in wanted else None for number, state in enumerate(states)
        )
    return type(output)(**kept)


def _cast(value: Any, dtype: torch.dtype) -> Any:
    if isinstance(value, tuple):
        return tuple(_cast(part, dtype) for part in value)
    return value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value
