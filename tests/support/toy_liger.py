"""Liger's functions in plain torch, which keep what Liger's keep and write in place where they do.

What surrounds the kernels is tested with these, without Triton. `check_liger.py` compares them with the library.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional


def liger_rms_norm(x: Tensor, weight: Tensor, eps: float, offset: float, casting: str, in_place: bool) -> Tensor:
    return _Norm.apply(x, weight, eps, offset, casting, in_place)  # type: ignore[no-any-return]


def liger_rope(query: Tensor, key: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    return _Rope.apply(query, key, cos, sin)  # type: ignore[no-any-return]


def liger_swiglu(gate: Tensor, up: Tensor) -> Tensor:
    return _Gated.apply(gate, up, functional.silu)  # type: ignore[no-any-return]


def liger_geglu(gate: Tensor, up: Tensor) -> Tensor:
    return _Gated.apply(gate, up, lambda x: functional.gelu(x, approximate="tanh"))  # type: ignore[no-any-return]


class _Norm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float, offset: float, casting: str, in_place: bool) -> Tensor:
        ctx.save_for_backward(x, weight, _inverse_rms(x, eps))
        ctx.settings = eps, offset, casting
        ctx.in_place = in_place
        return _norm(x, weight, eps, offset, casting)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        x, weight = (value.detach().requires_grad_() for value in ctx.saved_tensors[:2])
        with torch.enable_grad():
            of_x, of_weight = torch.autograd.grad(_norm(x, weight, *ctx.settings), [x, weight], gradient)
        if ctx.in_place:
            of_x = gradient.contiguous().copy_(of_x)
        return of_x, of_weight, None, None, None, None


def _norm(x: Tensor, weight: Tensor, eps: float, offset: float, casting: str) -> Tensor:
    normed = x.float() * _inverse_rms(x, eps)
    if casting == "llama":
        return normed.to(x.dtype) * (offset + weight)
    return (normed * (offset + weight.float())).to(x.dtype)


def _inverse_rms(x: Tensor, eps: float) -> Tensor:
    return torch.rsqrt(x.float().square().mean(-1, keepdim=True) + eps)


class _Rope(torch.autograd.Function):
    """Rotates in the memory that [B, L, H, d] has if it is contiguous, as that of a projection's output is."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, cos: Tensor, sin: Tensor) -> Any:
        ctx.save_for_backward(cos, sin)
        return tuple(_rotated(values, cos, sin) for values in (query, key))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        cos, sin = ctx.saved_tensors
        return *(_rotated(values, cos, -sin) for values in gradients), None, None


def _rotated(values: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    memory = values.transpose(1, 2).contiguous()
    half = memory.shape[-1] // 2
    turned = torch.cat([-memory[..., half:], memory[..., :half]], dim=-1)
    memory.copy_(memory * cos[:, :, None] + turned * sin[:, :, None])
    return memory.transpose(1, 2)


class _Gated(torch.autograd.Function):
    """Writes the gradients over what it kept."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor, activation: Any) -> Tensor:
        ctx.save_for_backward(gate, up)
        ctx.activation = activation
        result: Tensor = activation(gate) * up
        return result

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        gate, up = ctx.saved_tensors
        leaves = [gate.detach().clone().requires_grad_(), up.detach().clone().requires_grad_()]
        with torch.enable_grad():
            found = torch.autograd.grad(ctx.activation(leaves[0]) * leaves[1], leaves, gradient)
        for kept, new in zip((gate, up), found, strict=True):
            kept.detach().copy_(new)
        return gate, up, None
