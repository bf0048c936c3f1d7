"""Gradients that are computed during the forward pass, for fused losses."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def value_and_gradients(function: Callable[..., Tensor], tensors: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
    """Value of a scalar function of tensors, which it may overwrite, and its gradients with respect to them."""
    # Under gradient checkpointing a hook is active that would run the whole forward pass again for tensors saved here.
    own = torch.autograd.graph.saved_tensors_hooks(lambda tensor: tensor, lambda tensor: tensor)
    with torch.enable_grad(), own:
        leaves = [tensor.detach().requires_grad_() for tensor in tensors]
        value = function(*leaves)
        gradients = torch.autograd.grad(value, leaves)
    return value.detach(), [*gradients]
