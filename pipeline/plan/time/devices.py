"""Devices and their data sheets.

Rates are dense tensor-core rates for 16-bit input with float32 sums, in 10^12 operations per second, from the makers'
data sheets. No program reaches them.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from alignkd.vlm.errors import InputError

GB = 10**9


@dataclass(frozen=True, kw_only=True)
class Device:
    """Figures of a device's data sheet.

    Attributes:
        memory: memory in bytes.
        teraflops: rate in 10^12 operations per second, see the docstring of the module.
    """

    memory: int
    teraflops: float


DEVICES: Mapping[str, Device] = {
    "t4": Device(memory=16 * GB, teraflops=65),
    "v100": Device(memory=32 * GB, teraflops=125),
    "l4": Device(memory=24 * GB, teraflops=121),
    "a10": Device(memory=24 * GB, teraflops=125),
    "rtx3060": Device(memory=12 << 30, teraflops=25.5),
    "rtx3090": Device(memory=24 << 30, teraflops=71),
    "rtx4070": Device(memory=12 << 30, teraflops=58.3),
    "rtx4080": Device(memory=16 << 30, teraflops=97.5),
    "rtx4090": Device(memory=24 << 30, teraflops=165.2),
    "rtx5090": Device(memory=32 << 30, teraflops=209.5),
    "l40s": Device(memory=48 * GB, teraflops=362),
    "a100-40gb": Device(memory=40 * GB, teraflops=312),
    "a100-80gb": Device(memory=80 * GB, teraflops=312),
    "h100": Device(memory=80 * GB, teraflops=989),
    "h200": Device(memory=141 * GB, teraflops=989),
}


def device_named(name: str) -> Device:
    """The device of that name.

    Raises:
        InputError: no such device in `DEVICES`.
    """
    if name.lower() not in DEVICES:
        raise InputError(f"device is {name!r}, expected one of {', '.join(DEVICES)}")
    return DEVICES[name.lower()]
