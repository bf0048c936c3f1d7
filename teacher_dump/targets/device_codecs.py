"""The store's codecs on the teacher's device: the same bytes as `storage.codecs`, so that less leaves the device.

Formulas and error bounds are in `storage/codecs/`; tests compare every byte. Values that cannot be stored are not
detected here, because that would mean waiting for the device: the extremes are returned too, and the host checks them.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import pad

from alignkd.storage.codecs import check_all_present, get_codec
from alignkd.storage.codecs.half_scale import INT8_STEPS
from alignkd.storage.codecs.int8_group import GROUP
from alignkd.storage.codecs.int8_unit import UNIT_STEPS
from alignkd.storage.codecs.sqrt_u8 import STEPS
from alignkd.storage.errors import RecordError, naming
from alignkd.storage.record.encoded import EncodedArray
from alignkd.storage.record.record import Target

Parts = dict[str, Tensor]
EXTREMES = "extremes"
"""In addition to the parts of a codec: float32 [2], the smallest and the largest value, NaN if there is a NaN."""


def encode(codec: str, values: Tensor) -> Parts:
    """Encode values of any float dtype on their device: the stored parts of a codec, and `EXTREMES`."""
    values = values.float()
    # elementwise results keep the strides of a transposed input; what leaves the device is contiguous
    parts = {name: part.contiguous() for name, part in _ENCODERS[codec](values).items()}
    return {**parts, EXTREMES: torch.stack([values.amin(), values.amax()]) if values.numel() else values.new_zeros(2)}


def extremes(values: Tensor, dim: int) -> Tensor:
    """Smallest and largest value along an axis, in a new last axis of length 2; NaN where there is a NaN."""
    return torch.stack([values.amin(dim), values.amax(dim)], dim=-1)  # several times as fast as aminmax on a CPU


@dataclass(frozen=True, kw_only=True)
class StoredParts:
    """One target as it came from the device.

    Attributes:
        codec: name of the codec.
        parts: the result of `encode`, on the host.
    """

    codec: str
    parts: dict[str, NDArray[Any]]

    def target(self, field: str) -> Target:
        """The target in the form that a record holds.

        Raises:
            RecordError: a value is NaN or infinite, or the codec cannot hold it; the message names `field`.
        """
        codec = get_codec(self.codec)
        extremes = self.parts[EXTREMES].astype(np.float32)
        if not np.isfinite(extremes).all():
            size = self.parts[""].size
            raise RecordError(f"{field} has values among its {size} that are NaN or infinite, expected none")
        with naming(field):
            codec.encode(extremes[:, None])  # raises if the codec cannot hold them
        found = {name: part for name, part in self.parts.items() if name != EXTREMES}
        dtypes = {name: dtype for name, (dtype, _) in codec.parts(found[""].shape).items()}
        stored = {name: part.view(dtypes[name]) for name, part in found.items()}
        return stored[""] if codec.plain else EncodedArray(self.codec, stored)


def joined(targets: Sequence[StoredParts]) -> StoredParts:
    """Targets [R, n, C] of one codec as one, side by side along n; for codecs that encode each row on its own."""
    first = targets[0]
    if len(targets) == 1:
        return first
    parts = {
        name: np.concatenate([target.parts[name] for target in targets], axis=1)
        for name in first.parts
        if name != EXTREMES
    }
    of_each = np.stack([target.parts[EXTREMES] for target in targets])
    parts[EXTREMES] = np.stack([of_each[:, 0].min(), of_each[:, 1].max()])
    return StoredParts(codec=first.codec, parts=parts)


def _float32(values: Tensor) -> Parts:
    return {"": values}


def _float16(values: Tensor) -> Parts:
    return {"": values.half()}


def _bfloat16(values: Tensor) -> Parts:
    return {"": values.bfloat16().view(torch.int16)}  # numpy has no bfloat16


def _sqrt_u8(values: Tensor) -> Parts:
    scale = _half_at_least(values.amax(-1).clamp(min=0))
    roots = (values / _divisor(scale)[..., None]).sqrt_().mul_(STEPS)
    return {"": roots.round_().to(torch.uint8), "scale": scale}


def _int8_channel(values: Tensor) -> Parts:
    scale = _int8_scale(torch.maximum(values.amax(-2), -values.amin(-2)))
    return {"": _to_int8(values, scale[..., None, :]), "scale": scale}


def _int8_group(values: Tensor) -> Parts:
    channels = values.shape[-1]
    groups = pad(values, (0, -channels % GROUP)).unflatten(-1, (-1, GROUP))
    scale = _int8_scale(torch.maximum(groups.amax(-1), -groups.amin(-1)))
    steps = _to_int8(groups, scale[..., None]).flatten(-2)
    return {"": steps[..., :channels], "scale": scale}


def _int8_unit(values: Tensor) -> Parts:
    return {"": (values * UNIT_STEPS).round_().clamp_(-UNIT_STEPS, UNIT_STEPS).to(torch.int8)}


def _half_at_least(values: Tensor) -> Tensor:
    """Round non-negative values up to float16."""
    halves = values.abs().half()
    too_small = halves.to(values.dtype) < values
    # the next bit pattern is the next number: halves are not negative here
    return (halves.view(torch.int16) + too_small.to(torch.int16)).view(torch.half)


def _int8_scale(largest: Tensor) -> Tensor:
    """Width of one step for values up to the magnitude `largest`; in float64, as on the host."""
    return _half_at_least(largest.clamp(min=0).double() / INT8_STEPS)


def _to_int8(values: Tensor, scale: Tensor) -> Tensor:
    return (values / _divisor(scale)).round_().to(torch.int8)


def _divisor(scale: Tensor) -> Tensor:
    return torch.where(scale == 0, 1, scale).float()


_ENCODERS: dict[str, Callable[[Tensor], Parts]] = {
    "float32": _float32,
    "float16": _float16,
    "bfloat16": _bfloat16,
    "sqrt_u8": _sqrt_u8,
    "int8_channel": _int8_channel,
    "int8_group": _int8_group,
    "int8_unit": _int8_unit,
}
check_all_present(_ENCODERS, "_ENCODERS of teacher_dump/targets/device_codecs.py")
