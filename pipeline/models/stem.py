"""What `alignkd stem` prints of a stem: whose it is, and its size on disk, on the device and on the host."""

from pathlib import Path
from typing import Any

from alignkd.pipeline.config.checkpoint_config import PlannedModel
from alignkd.pipeline.console.printing import format_bytes
from alignkd.vlm.errors import InputError
from alignkd.vlm.families.stem import StemSizes
from alignkd.vlm.hardware.devices import TORCH_DTYPES
from alignkd.vlm.stem.designs import design_or_reason
from alignkd.vlm.stem.file import StemInfo

_SIZES = {
    "on disk": "disk_bytes",
    "on the device": "device_bytes",
    "on the host": "host_bytes",
    "memory in total": "memory_bytes",
}


def sizes_of_stem(
    model: str, vision_config: Path | None, dtype: str, *, lm_head: bool, depth: int | None = None
) -> dict[str, Any]:
    """Depth and bytes of the stem that a model would have, from its `config.json` alone.

    Args:
        depth: number of decoder layers whose attention the stem gives; None: the smallest.

    Raises:
        InputError: no such checkpoint, or one without a stem, or without one of this depth.
    """
    found = design_or_reason(PlannedModel(model, vision_config).config, depth)
    if isinstance(found, str):
        raise InputError(f"{model}: {found}")
    return {"depth": found.depth, **_bytes(found.sizes(TORCH_DTYPES[dtype], lm_head=lm_head))}


def info_json(info: StemInfo) -> dict[str, Any]:
    """The description of a stem file as plain values."""
    head = {"file": str(info.path), "dtype": info.dtype, "depth": info.depth, "lm_head": info.has_lm_head}
    return {**head, "fingerprint": dict(info.fingerprint), "tower": dict(info.tower), **_info_bytes(info)}


def info_lines(info: StemInfo) -> list[str]:
    """The description of a stem file for a terminal."""
    return [
        f"{info.path}: stem in {info.dtype}, depth {info.depth}, {'with' if info.has_lm_head else 'without'} lm_head",
        f"teacher's weights  {info.fingerprint.get('weights', 'not recorded')}",
        f"its vision tower   {info.tower.get(info.dtype, 'not recorded')} ({info.dtype})",
        *size_lines(_info_bytes(info)),
    ]


def size_lines(sizes: dict[str, Any]) -> list[str]:
    """One line per size of `sizes_of_stem`."""
    return [f"{label:<17}  {format_bytes(sizes[key]):>10}" for label, key in _SIZES.items()]


def _info_bytes(info: StemInfo) -> dict[str, Any]:
    return _bytes(info.sizes) | {"disk_bytes": info.file_bytes}


def _bytes(sizes: StemSizes) -> dict[str, Any]:
    return {
        "disk_bytes": sizes.total,
        "device_bytes": sizes.device + sizes.lm_head,
        "device_bytes_of_lm_head": sizes.lm_head,
        "host_bytes": sizes.host,
        "memory_bytes": sizes.total,
    }
