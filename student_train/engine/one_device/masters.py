"""Float32 master weights beside the weights that compute, without keeping any bit twice.

A bfloat16 number is the upper half of a float32 number. A bfloat16 weight is its master weight rounded, so only the
difference of the two patterns of bits is kept: -32768 to 32768. It fits 16 bits but for the largest one, which is kept
as 32767: of one master weight in 131,072 (half-way between two bfloat16 numbers), the last bit changes in a step.
float16 weights need whole masters, float32 weights none.
"""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

LARGEST_REST = torch.iinfo(torch.int16).max


class Masters:
    """The master weights of trained parameters, which are made contiguous.

    An optimiser gets `holders`: tensors that have the values of a master weight between `open` and `close`.

    Args:
        weights: of one dtype; the masters start from their values.
    """

    def __init__(self, weights: Iterable[nn.Parameter]) -> None:
        self._holders: dict[nn.Parameter, Tensor] = {}
        self._rests: dict[nn.Parameter, Tensor] = {}
        for weight in weights:
            weight.data = weight.data.contiguous()
            if weight.dtype == torch.bfloat16:
                self._rests[weight] = torch.zeros_like(weight, dtype=torch.int16)
                self._holders[weight] = torch.empty(0, dtype=torch.float32, device=weight.device)
            else:
                own = weight.dtype == torch.float32
                self._holders[weight] = weight if own else weight.detach().to(torch.float32)

    def holder(self, weight: nn.Parameter) -> Tensor:
        """What the optimiser updates in place of a weight."""
        return self._holders[weight]

    def values(self, weight: nn.Parameter) -> Tensor:
        """The master weight, float32; of bfloat16 weights a copy."""
        if weight not in self._rests:
            return self._holders[weight].detach()
        bits = weight.detach().view(torch.int16).to(torch.int32)
        return bits.bitwise_left_shift_(16).add_(self._rests[weight]).view(torch.float32)

    def set(self, weight: nn.Parameter, values: Tensor) -> None:
        """Set master weight and weight.

        Args:
            values: float32, finite.
        """
        if weight in self._rests:
            self._holders[weight].data = values.to(weight.device, copy=True)
        else:
            self._holders[weight].detach().copy_(values)
        self.close(weight)

    def open(self, weight: nn.Parameter) -> None:
        """Give the holder the values of the master weight."""
        if weight in self._rests:
            self._holders[weight].data = self.values(weight)

    @torch.no_grad()
    def close(self, weight: nn.Parameter) -> None:
        """Take over the values of the holder."""
        holder = self._holders[weight]
        if weight in self._rests:
            weight.copy_(holder)
            upper = weight.view(torch.int16).to(torch.int32).bitwise_left_shift_(16)
            rest = holder.detach().view(torch.int32) - upper
            self._rests[weight].copy_(rest.clamp_(max=LARGEST_REST))
            holder.data = holder.new_empty(0)
        elif holder is not weight:
            weight.copy_(holder)
