"""Values in 8 bits, as bitsandbytes keeps them: blocks of 256 values, each with its own float32 scale.

A code is the index of one of 256 levels between -1 (or 0) and 1; a value is level times scale. bitsandbytes makes the
largest magnitude of a block its scale. Signed levels contain 1 and not -1: the lowest is -0.993. So a block whose
largest magnitude is negative has a scale that is no magnitude of its values. `quantize` chooses the scale with which
the largest magnitude is exact. Therefore it finds codes and scales again from the values alone, if the scale is above
1e-30 (below it products with small levels are denormal).
"""

from collections.abc import Iterable
from itertools import chain

import torch
from torch import Tensor

BLOCK = 256
# Values that are quantised at a time: each takes about 40 bytes meanwhile.
AT_ONCE = 1 << 22


class Blocks:
    """Float32 values in 8 bits.

    Attributes:
        codes: uint8 [count].
        scales: float32 [blocks]; the last block may have fewer values.
        levels: float32 [256], ascending.
    """

    def __init__(self, count: int, levels: Tensor) -> None:
        self.levels = levels
        self.codes = torch.zeros(count, dtype=torch.uint8, device=levels.device)
        self.scales = torch.zeros(-(-count // BLOCK), dtype=torch.float32, device=levels.device)

    def read(self, start: int, count: int) -> Tensor:
        """`count` values from `start` on, float32 [count]."""
        first, end = start // BLOCK, -(-(start + count) // BLOCK)
        scales = self.scales[first:end].repeat_interleave(BLOCK, output_size=BLOCK * (end - first))
        codes = self.codes[start : start + count]
        return self.levels[codes.int()] * scales[start - first * BLOCK :][:count]

    def write(self, pieces: Iterable[tuple[int, Tensor]]) -> None:
        """Quantise all values.

        Args:
            pieces: start and values, in ascending order of the starts; what is between the pieces is 0.
        """
        done, held, waiting = 0, 0, list[Tensor]()
        for start, values in chain(pieces, [(len(self.codes), self.scales[:0])]):
            waiting += [self.scales.new_zeros(start - done - held), values.to(self.scales.device)]
            held = start - done + len(values)
            is_end = start == len(self.codes)
            ready = held if is_end else held - held % BLOCK
            if ready:
                joined = torch.cat(waiting)
                self._quantize(done, joined[:ready])
                done, held, waiting = done + ready, held - ready, [joined[ready:]]

    def _quantize(self, start: int, values: Tensor) -> None:
        for begin in range(0, len(values), AT_ONCE):
            part, first = values[begin : begin + AT_ONCE], (start + begin) // BLOCK
            codes, scales = quantize(part, self.levels)
            self.codes[start + begin :][: len(part)] = codes
            self.scales[first : first + len(scales)] = scales


def quantize(values: Tensor, levels: Tensor) -> tuple[Tensor, Tensor]:
    """Codes, uint8 [count], and scales, float32 [blocks], of float32 values [count]."""
    rows = torch.nn.functional.pad(values, (0, -len(values) % BLOCK)).view(-1, BLOCK)
    scales = rows.abs().amax(1)
    if levels[0] < 0:
        scales = torch.where(rows.amin(1) == -scales, _scales_of_negative(rows, scales, levels), scales)
    return _nearest(rows, scales, levels).flatten()[: len(values)], scales


def _scales_of_negative(rows: Tensor, largest: Tensor, levels: Tensor) -> Tensor:
    """Scales with which the lowest level is the negative of `largest`: of three neighbours the one with most exact."""
    quotient = largest / -levels[0]
    found, most = quotient, torch.full_like(largest, -1)
    for scales in (quotient, quotient.nextafter(torch.zeros_like(quotient)), quotient.nextafter(quotient * 2)):
        codes = _nearest(rows, scales, levels)
        exact = (levels[codes.int()] * scales[:, None] == rows).sum(1).to(most.dtype)
        found, most = torch.where(exact > most, scales, found), torch.maximum(exact, most)
    return found


def _nearest(rows: Tensor, scales: Tensor, levels: Tensor) -> Tensor:
    """The codes of the nearest levels, uint8 [blocks, BLOCK]."""
    relative = rows / torch.where(scales > 0, scales, 1)[:, None]
    return torch.bucketize(relative, (levels[1:] + levels[:-1]) / 2).to(torch.uint8)
