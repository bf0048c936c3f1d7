"""Gradients that are computed during the forward pass, for fused losses."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def gradients_of(function: Callable[..., Tensor], tensors: Sequence[Tensor]) -> list[Tensor]:
    """Gradients of a scalar function with respect to tensors, which it may overwrite."""
    # Under gradient checkpointing a hook is active that would run the whole forward pass again for tensors saved here.
    own = torch.autograd.graph.saved_tensors_hooks(lambda tensor: tensor, lambda tensor: tensor)
    with torch.enable_grad(), own:
        leaves = [tensor.detach().requires_grad_() for tensor in tensors]
        return [*torch.autograd.grad(function(*leaves), leaves)]
