"""Decodes stored targets on the device that trains, so that the bytes on the bus are those on the disk.

One decoder per codec, by the formula in the codec's docstring in `storage/codecs`; tests compare them with the host's.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from alignkd.storage.codecs import check_all_present
from alignkd.storage.codecs.int8_group import GROUP
from alignkd.storage.codecs.int8_unit import UNIT_STEPS

Parts = Mapping[str, Tensor]


def _unchanged(parts: Parts) -> Tensor:
    return parts[""]


def _bfloat16(parts: Parts) -> Tensor:
    return parts[""].view(torch.bfloat16)


def _sqrt_u8(parts: Parts) -> Tensor:
    root = parts[""] * (1 / 255)
    return root.square_().mul_(parts["scale"].float()[..., None])


def _int8_channel(parts: Parts) -> Tensor:
    return parts[""] * parts["scale"].float()[..., None, :]


def _int8_group(parts: Parts) -> Tensor:
    steps, scale = parts[""], parts["scale"].float()
    return steps * scale.repeat_interleave(GROUP, dim=-1)[..., : steps.shape[-1]]


def _int8_unit(parts: Parts) -> Tensor:
    return parts[""] * (1 / UNIT_STEPS)


DECODERS: dict[str, Callable[[Parts], Tensor]] = {
    "float32": _unchanged,
    "float16": _unchanged,
    "bfloat16": _bfloat16,
    "sqrt_u8": _sqrt_u8,
    "int8_channel": _int8_channel,
    "int8_group": _int8_group,
    "int8_unit": _int8_unit,
}
check_all_present(DECODERS, "DECODERS of student_train/data/decode.py")


@dataclass(frozen=True, kw_only=True)
class EncodedTensor:
    """Float values as the stored parts of a codec, with any number of leading batch axes.

    Attributes:
        codec: name of the codec.
        parts: part name -> tensor; the part "" has the shape of the values. bfloat16 is stored as uint16 bit patterns.
        rows_of_group: for rows [n, D] in groups that share a scale: the number of rows of each group, plain integers.
            Parts other than "" then have one entry per group.
    """

    codec: str
    parts: dict[str, Tensor]
    rows_of_group: tuple[int, ...] | None = None

    @classmethod
    def plain(cls, values: Tensor) -> Self:
        """Wrap float values that are not encoded."""
        return cls(codec="float32", parts={"": values})

    @property
    def shape(self) -> torch.Size:
        """Shape of the decoded values."""
        return self.parts[""].shape

    def rows(self, rows: slice) -> Self:
        """Some of the rows R of attention [B, R, H, C]; every codec of attention encodes rows of heads alone."""
        return replace(self, parts={name: part[:, rows] for name, part in self.parts.items()})

    def heads(self, heads: slice) -> Self:
        """Some of the heads H of attention [B, R, H, C]; see `rows`."""
        return replace(self, parts={name: part[:, :, heads] for name, part in self.parts.items()})

    def decode(self) -> Tensor:
        """The values: float32, or float16 or bfloat16 where they are stored in these."""
        decode = DECODERS[self.codec]
        if self.rows_of_group is None:
            return decode(self.parts)
        return _decode_groups(decode, self.parts, self.rows_of_group)


def _decode_groups(decode: Callable[[Parts], Tensor], parts: Parts, rows_of_group: Sequence[int]) -> Tensor:
    """Decode rows whose groups share scales; counts are known on the host, so that nothing waits for the device."""
    rows_ND = parts[""]
    if len(set(rows_of_group)) == 1:  # [groups, rows, D], without a copy
        decoded: Tensor = decode({**parts, "": rows_ND.unflatten(0, (len(rows_of_group), -1))}).flatten(0, 1)
        return decoded
    values_ND = torch.empty(rows_ND.shape, dtype=torch.float32, device=rows_ND.device)
    split = rows_ND.split(list(rows_of_group)), values_ND.split(list(rows_of_group))
    for group, (rows_nD, out_nD) in enumerate(zip(*split, strict=True)):
        out_nD.copy_(decode({name: part[group] if name else rows_nD for name, part in parts.items()}))
    return values_ND
