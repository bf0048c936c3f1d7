"""Modules with a second way to compute them, and how far the two are apart."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

# Relative differences up to these are rounding.
LIMITS = {torch.float64: 1e-6, torch.float32: 1e-3, torch.bfloat16: 0.05, torch.float16: 0.02}
SAMPLES, LENGTH = 2, 16


@dataclass(frozen=True)
class Part:
    """A module and the forward function that takes the place of its own."""

    module: nn.Module
    forward: Callable[..., Any]

    def bind(self) -> None:
        """Replace the module's forward function."""
        self.module.forward = self.forward


def limit_of(decoder: nn.Module) -> float:
    """The largest relative difference that is rounding in the dtype of a decoder."""
    return LIMITS[next(decoder.parameters()).dtype]


@torch.no_grad()
def largest_difference(decoder: Any, parts: Sequence[Part]) -> tuple[float, Part]:
    """The largest difference between both functions of a part, and that part.

    Both get the inputs that the part has in a pass of the decoder over a few token embeddings, and their outputs are
    compared vector by vector, relative to the mean norm.

    Args:
        decoder: takes `inputs_embeds` [B, L, D].
        parts: modules of the decoder whose own functions are in use, at least one.
    """
    embed = decoder.get_input_embeddings()
    ids = torch.arange(SAMPLES * LENGTH, device=embed.weight.device).remainder(len(embed.weight))
    with _evaluation(decoder), ExitStack() as stack:
        calls = [stack.enter_context(_recorded(part.module)) for part in parts]
        decoder(inputs_embeds=embed(ids.view(SAMPLES, LENGTH)), use_cache=False)
        found = [_difference(part, call) for part, call in zip(parts, calls, strict=True)]
    return max(zip(found, parts, strict=True), key=lambda pair: pair[0] if pair[0] == pair[0] else float("inf"))


@dataclass
class _Call:
    """Arguments and output of a module's last call."""

    args: Any = ()
    kwargs: Any = None
    output: Any = None


@contextmanager
def _recorded(module: nn.Module) -> Iterator[_Call]:
    call = _Call()

    def note(_: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        call.args, call.kwargs, call.output = args, kwargs, output

    handle = module.register_forward_hook(note, with_kwargs=True)
    try:
        yield call
    finally:
        handle.remove()


@contextmanager
def _evaluation(module: nn.Module) -> Iterator[None]:
    """Without dropout; every module's own mode is put back."""
    modes = [(inner, inner.training) for inner in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for inner, mode in modes:
            inner.training = mode


def _difference(part: Part, call: _Call) -> float:
    expected, found = _first(call.output).double(), _first(part.forward(*call.args, **call.kwargs)).double()
    scale = expected.norm(dim=-1).mean().clamp_min(torch.finfo(torch.float64).tiny)
    return float((found - expected).norm(dim=-1).max() / scale)


def _first(output: Tensor | tuple[Tensor, ...]) -> Tensor:
    return output if isinstance(output, Tensor) else output[0]
