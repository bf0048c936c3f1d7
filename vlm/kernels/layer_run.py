"""The forward function of a decoder layer: compiled or not, with activations kept or computed again.

Both are decided in one place because of their order. torch's compiler cannot see through `checkpoint`, so the function
is compiled inside it. And the backward pass must compute the layer again with the same function as the forward pass,
otherwise it finds other tensors than were kept.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
import torch.utils.checkpoint
from torch import nn


class LayerRun:
    """Takes the place of a layer's `forward`.

    Attributes:
        plain: the layer's own forward function.
        compiled: the same, compiled; None: not compiled.
        checkpoint: called with the function and its arguments; None: the function is called directly.
        is_watched: whether to call the plain function. A compiled one does not run hooks that were added later, and
            does not notice a replaced configuration, so what is recorded in a layer would be missing.
    """

    def __init__(self, plain: Callable[..., Any]) -> None:
        self.plain = plain
        self.compiled: Callable[..., Any] | None = None
        self.checkpoint: Callable[..., Any] | None = None
        self.is_watched = False

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        # a cache of keys and values has an entry of each layer, which would be compiled on its own
        is_plain = self.is_watched or kwargs.get("past_key_values") is not None
        run = self.plain if is_plain or self.compiled is None else self.compiled
        return run(*args, **kwargs) if self.checkpoint is None else self.checkpoint(run, *args, **kwargs)


def layer_run(layer: nn.Module) -> LayerRun:
    """The forward function of a layer, which is replaced by a `LayerRun` if it is none yet."""
    run = layer.forward
    if not isinstance(run, LayerRun):
        run = LayerRun(run)
        layer.forward = run
    return run


def compute_again(layers: Sequence[nn.Module], *, preserve_rng_state: bool) -> None:
    """Keep only the input of each layer for the backward pass, which computes the layer again.

    Args:
        preserve_rng_state: draw the same random numbers again; only needed where the layers draw any.
    """
    for layer in layers:
        layer_run(layer).checkpoint = partial(
            torch.utils.checkpoint.checkpoint, use_reentrant=False, preserve_rng_state=preserve_rng_state
        )


@contextmanager
def watched(layers: Sequence[nn.Module]) -> Iterator[None]:
    """Run the plain functions of these layers inside the block."""
    runs = [run for run in (layer.forward for layer in layers) if isinstance(run, LayerRun)]
    for run in runs:
        run.is_watched = True
    try:
        yield
    finally:
        for run in runs:
            run.is_watched = False
