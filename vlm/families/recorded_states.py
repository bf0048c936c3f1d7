"""Hidden states after chosen decoder layers, recorded while the model runs."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn

from alignkd.vlm.families.family import VisionLanguageModel


@contextmanager
def recorded_states(model: VisionLanguageModel, layers: Sequence[int]) -> Iterator[dict[int, Tensor]]:
    """Record the output [B, L, D] of decoder layers, with gradient, when `hidden_states` runs inside.

    The result is filled by then. Layers may be compiled, or computed again for the backward pass: a hook of the module
    sees the result of both.

    Args:
        layers: numbers of the decoder's layers, from 0.
    """
    found: dict[int, Tensor] = {}
    with ExitStack() as hooks:
        for number in layers:
            hooks.enter_context(_removed(model.decoder_layers[number].register_forward_hook(_keep_in(found, number))))
        yield found


@contextmanager
def _removed(handle: Any) -> Iterator[None]:
    try:
        yield
    finally:
        handle.remove()


def _keep_in(found: dict[int, Tensor], number: int) -> Any:
    def keep(layer: nn.Module, inputs: Any, output: Any) -> None:
        # some layers return a tuple whose first entry are the states
        found[number] = output[0] if isinstance(output, tuple) else output

    return keep
