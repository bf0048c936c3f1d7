"""AdamW whose moments take 8 bits, by the kernels of bitsandbytes.

The optimiser class of bitsandbytes waits for the device after every parameter, and keeps settings of parameters in a
global object. So only its update functions are used; they exist for CUDA and, in plain torch, for the CPU.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from alignkd.student_train.engine.optimizers.blocks import BLOCK, Blocks
from alignkd.student_train.engine.optimizers.moments import MOMENTS, MomentOptimizer, Pieces
from alignkd.student_train.engine.parameter_groups import MOMENT_BITS, SMALLEST_IN_8_BITS
from alignkd.vlm.weights.bitsandbytes import bitsandbytes_module

# Values that are updated at a time: kernels count in 32 bits, and those of the CPU make float32 copies.
AT_ONCE = BLOCK << 16


def optimizer_library() -> Any:
    """The module `bitsandbytes`.

    Raises:
        InputError: it is not installed or does not work here.
    """
    return bitsandbytes_module("train.optimizer 'adamw_8bit'", otherwise="set train.optimizer to adamw")


class AdamW8bit(MomentOptimizer):
    """AdamW with moments in blocks of 8 bits; groups with 32 `moment_bits` and small parameters keep float32.

    Args:
        groups: each has `params` (contiguous float32 tensors), `lr` and `moment_bits`.
    """

    def __init__(self, groups: list[dict[str, Any]], weight_decay: float) -> None:
        super().__init__(groups, {"weight_decay": weight_decay, "betas": (0.9, 0.999), "eps": 1e-8})
        self._functional = optimizer_library().functional
        self._found_levels: dict[torch.device, dict[str, Tensor]] = {}

    def create_state(self, group: dict[str, Any], parameters: Sequence[Tensor]) -> None:
        for parameter in parameters:
            in_float32 = group[MOMENT_BITS] == 32 or parameter.numel() < SMALLEST_IN_8_BITS
            self.state[parameter] = {"step": 0} | {
                kind: torch.zeros_like(parameter) if in_float32 else Blocks(parameter.numel(), levels)
                for kind, levels in self._levels(parameter.device).items()
            }

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        assert closure is None
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, parameter.grad, group)

    def moment(self, parameter: Tensor, kind: str, start: int, count: int) -> Tensor:
        values: Tensor | Blocks = self.state[parameter][kind]
        return values.read(start, count) if isinstance(values, Blocks) else values.view(-1)[start : start + count]

    def set_moment(self, parameter: Tensor, kind: str, pieces: Pieces) -> None:
        values = self.state[parameter][kind]
        if isinstance(values, Blocks):
            values.write(pieces)
            return
        for start, piece in pieces:
            values.view(-1)[start : start + len(piece)].copy_(piece)

    def _set_num_steps(self, steps: float) -> None:
        for state in self.state.values():
            state["step"] = int(steps)

    def _levels(self, device: torch.device) -> dict[str, Tensor]:
        """The levels of each moment, float32 [256]; second moments are not negative."""
        if device not in self._found_levels:
            maps = (self._functional.create_dynamic_map(signed=kind == MOMENTS[0]).to(device) for kind in MOMENTS)
            self._found_levels[device] = dict(zip(MOMENTS, maps, strict=True))
        return self._found_levels[device]

    def _update(self, parameter: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        state = self.state[parameter]
        state["step"] += 1
        (beta1, beta2), step = group["betas"], state["step"]
        eps, rate, decay = group["eps"], group["lr"], group["weight_decay"]
        first, second = (state[kind] for kind in MOMENTS)
        weights, gradients = parameter.detach().view(-1), gradient.reshape(-1)
        for part in _parts(len(weights)):
            if isinstance(first, Blocks):
                (codes1, scales1), (codes2, scales2) = (_of(blocks, part) for blocks in (first, second))
                self._functional.optimizer_update_8bit_blockwise(
                    "adam", gradients[part], weights[part], codes1, codes2, beta1, beta2, 0.0, 0.0, eps, step, rate,
                    first.levels, second.levels, scales1, scales2, decay,
                )  # fmt: skip
            else:
                self._functional.optimizer_update_32bit(
                    "adam", gradients[part], weights[part], first.view(-1)[part], beta1, eps, step, rate,
                    second.view(-1)[part], beta2, weight_decay=decay,
                )  # fmt: skip


def _parts(count: int) -> Iterator[slice]:
    return (slice(begin, min(begin + AT_ONCE, count)) for begin in range(0, count, AT_ONCE))


def _of(blocks: Blocks, part: slice) -> tuple[Tensor, Tensor]:
    """Codes and scales of whole blocks."""
    return blocks.codes[part], blocks.scales[part.start // BLOCK : -(-part.stop // BLOCK)]
