"""Counts the memory of a computation at any size without computing it: tensors on torch's device `meta`."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
from live_bytes import LiveBytes
from torch import Tensor

aten = torch.ops.aten


class MetaBytes(LiveBytes):
    """`LiveBytes` for tensors on `meta`, which have no values: a value that is read is 1, and a comparison holds."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is aten._local_scalar_dense.default and args[0].is_meta:
            return 1.0 if args[0].is_floating_point() else 1
        if func is aten.allclose.default:
            return True
        return super().__torch_dispatch__(func, types, args, kwargs)


class FlashAttention(torch.autograd.Function):
    """Allocates and keeps what a flash attention kernel does: no matrix of scores."""

    @staticmethod
    def forward(ctx: Any, query_BHLd: Tensor, key_BHLd: Tensor, value_BHLd: Tensor) -> Tensor:
        """The output, and the logarithms of the softmax's sums for the backward pass."""
        output = torch.empty_like(query_BHLd)
        sums = torch.empty(query_BHLd.shape[:3], dtype=torch.float32, device=query_BHLd.device)
        ctx.save_for_backward(query_BHLd, key_BHLd, value_BHLd, output, sums)
        return output

    @staticmethod
    def backward(ctx: Any, *_: Any) -> Any:
        """Gradients, and the float32 sum of that of the queries."""
        query_BHLd, key_BHLd, value_BHLd, *_ = ctx.saved_tensors
        sums = torch.empty(query_BHLd.shape, dtype=torch.float32, device=query_BHLd.device)
        found = torch.empty_like(query_BHLd), torch.empty_like(key_BHLd), torch.empty_like(value_BHLd)
        del sums
        return found


@contextmanager
def flash_attention() -> Iterator[None]:
    """Inside, attention allocates what a flash kernel on a GPU does."""

    def attention(query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> Tensor:
        found: Tensor = FlashAttention.apply(query, key, value)  # type: ignore[no-untyped-call]
        return found

    with patch.object(torch.nn.functional, "scaled_dot_product_attention", attention):
        yield
