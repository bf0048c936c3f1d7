"""`int8_group`: 8 bits per value and one scale per 64 neighbouring channels of a position, for hidden states."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from alignkd.storage.codecs.base import Parts, PartShapes, Shape
from alignkd.storage.codecs.half_scale import DTYPE, STEP_BOUND, int8_scale, invalid_int8, invalid_scales, to_int8

GROUP = 64


class Int8Group:
    """Values [..., channels]: q int8 of the same shape and `scale` float16 [..., ceil(channels / 64)].

    scale = max over the group of |x| / 127, rounded up to float16; q = rint(x / scale);
    x'[c] = q[c] * scale[c // 64]; the last group may be shorter.
    |x' - x| <= 0.50001 * scale, scale <= max |x| / 127 * (1 + 2^-10) + 2^-24. Values up to 8.3e6.
    """

    name = "int8_group"
    targets = frozenset({"hidden"})
    plain = False
    part_names = ("", "scale")
    shared_parts: frozenset[str] = frozenset()

    def parts(self, shape: Shape) -> PartShapes:
        return {"": (np.dtype("i1"), shape), "scale": (DTYPE, (*shape[:-1], -(-shape[-1] // GROUP)))}

    def encode(self, values: NDArray[Any]) -> Parts:
        """Raises:
        RecordError: a group reaches above 8.3e6.
        """
        groups = _grouped(values.astype(np.float32, copy=False))
        scale = int8_scale(np.maximum(groups.max(-1), -groups.min(-1)), self.name)
        steps = to_int8(groups, scale[..., None]).reshape(*values.shape[:-1], scale.shape[-1] * GROUP)
        return {"": np.ascontiguousarray(steps[..., : values.shape[-1]]), "scale": scale}

    def decode(self, parts: Mapping[str, NDArray[Any]]) -> NDArray[np.float32]:
        values: NDArray[np.float32] = parts[""] * _per_channel(parts["scale"].astype(np.float32), parts[""].shape[-1])
        return values

    def error_bound(self, parts: Mapping[str, NDArray[Any]]) -> NDArray[np.float32]:
        return _per_channel(np.float32(STEP_BOUND) * parts["scale"].astype(np.float32), parts[""].shape[-1])

    def num_invalid(self, parts: Mapping[str, NDArray[Any]]) -> int:
        return invalid_int8(parts[""]) + invalid_scales(parts["scale"])

    def describe(self) -> dict[str, Any]:
        return {
            "codec_id": self.name,
            "group": GROUP,
            "formula": "q[c] * scale[c // 64]",
            "error_bound": "0.50001 * scale; scale <= max|x| / 127 * (1 + 2^-10) + 2^-24 over the group",
        }


def _grouped(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """[..., channels] -> [..., groups, 64], the last group filled up with zeros."""
    channels = values.shape[-1]
    groups = -(-channels // GROUP)
    if channels % GROUP:
        whole = np.zeros((*values.shape[:-1], groups * GROUP), np.float32)
        whole[..., :channels] = values
        values = whole
    return values.reshape(*values.shape[:-1], groups, GROUP)


def _per_channel(scale: NDArray[Any], channels: int) -> NDArray[Any]:
    return np.repeat(scale, GROUP, axis=-1)[..., :channels]
