"""How long it takes: floating-point operations by shape, and what the data sheets say of devices.

Rates are dense tensor-core rates for 16-bit input with float32 sums, in 10^12 operations per second, from the makers'
data sheets; no program reaches them. `TEACHER_SHARE` and `STUDENT_SHARE` are the shares assumed to be reached: an
assumption until a probe has measured.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from alignkd.pipeline.plan.models import ModelShapes
from alignkd.vlm.errors import InputError

GB = 10**9
TEACHER_SHARE = 0.45
STUDENT_SHARE = 0.35
# of the 16-bit rate that a quantised decoder reaches: its weights are expanded before every product
QUANTISED_SHARE = {"none": 1.0, "int8": 0.5, "nf4": 0.7}


@dataclass(frozen=True, kw_only=True)
class Device:
    """A device by its data sheet.

    Attributes:
        memory: bytes.
        teraflops: 10^12 operations per second, see the module's description.
    """

    memory: int
    teraflops: float


DEVICES: Mapping[str, Device] = {
    "t4": Device(memory=16 * GB, teraflops=65),
    "v100": Device(memory=32 * GB, teraflops=125),
    "l4": Device(memory=24 * GB, teraflops=121),
    "a10": Device(memory=24 * GB, teraflops=125),
    "rtx3090": Device(memory=24 << 30, teraflops=71),
    "rtx4090": Device(memory=24 << 30, teraflops=165.2),
    "rtx5090": Device(memory=32 << 30, teraflops=209.5),
    "l40s": Device(memory=48 * GB, teraflops=362),
    "a100-40gb": Device(memory=40 * GB, teraflops=312),
    "a100-80gb": Device(memory=80 * GB, teraflops=312),
    "h100": Device(memory=80 * GB, teraflops=989),
    "h200": Device(memory=141 * GB, teraflops=989),
}
DEFAULT_DEVICE = "rtx3090"


def device_named(name: str) -> Device:
    """The device of that name.

    Raises:
        InputError: there is none in the table.
    """
    if name.lower() not in DEVICES:
        raise InputError(f"device is {name!r}, expected one of {', '.join(DEVICES)}")
    return DEVICES[name.lower()]


def forward_flops(model: ModelShapes, *, tokens: float, images: float, supervised: float) -> float:
    """Operations of one sample's forward pass.

    Two per parameter and token; attention 2 L^2 D per layer, as half of the pairs are masked and two products are made
    of each; the head only at supervised positions; the tower over every image.
    """
    D, V = model.size.hidden_size, model.size.vocab_size
    layers = model.size.parameters["language_model"] - 2 * V * D
    decoder = 2 * layers * tokens + 2 * tokens**2 * D * model.size.num_layers
    per_layer = 4 * model.vision_hidden_size**2 + 2 * model.vision_hidden_size * model.vision_intermediate_size
    patches = model.vision_patches + 1
    tower = model.vision_layers * (2 * per_layer * patches + 4 * patches**2 * model.vision_hidden_size)
    projector = 2 * model.vision_patches * (model.vision_hidden_size + D) * D
    return decoder + images * (tower + projector) + 2 * V * D * supervised


def training_flops(
    model: ModelShapes, *, tokens: float, images: float, supervised: float, gradient_checkpointing: bool
) -> float:
    """Operations of one sample's training step: the backward pass takes twice the forward one; the tower has none."""
    text = forward_flops(model, tokens=tokens, images=0, supervised=supervised)
    once = forward_flops(model, tokens=0, images=images, supervised=0)
    return text * (4 if gradient_checkpointing else 3) + once


def hours(flops: float, device: Device, share: float, devices: int = 1) -> float:
    """Wall time on so many devices that reach `share` of their rate."""
    return flops / (device.teraflops * 1e12 * share * devices) / 3600
