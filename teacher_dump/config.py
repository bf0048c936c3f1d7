"""What phase 1 is told about the teacher; what of it is kept is in `store_config`."""

from pathlib import Path
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, Field

from vlm.devices import Quantization, usable_device

DtypeName = Literal["float32", "bfloat16", "float16"]
TORCH_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class _Settings(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class TeacherConfig(_Settings):
    """The teacher and how it is run.

    Attributes:
        checkpoint: folder in the official layout, or hub id.
        vision_config: folder with the vision tower's config.json, overriding the checkpoint's `mm_vision_tower`.
        dtype: of the teacher's weights and arithmetic.
        quantization: `int8` or `nf4` quantise the decoder's linear layers (needs bitsandbytes), so that a large teacher
            fits a small card; attention and vision targets stay those of `dtype`, logits carry the error.
        batch: samples per forward pass.
        device: torch device; None takes a GPU when there is one.
    """

    checkpoint: str
    vision_config: Path | None = None
    dtype: DtypeName = "float32"
    quantization: Quantization = "none"
    batch: int = Field(default=8, ge=1)
    device: str | None = None

    @property
    def torch_dtype(self) -> torch.dtype:
        """`dtype` as torch's own."""
        return TORCH_DTYPES[self.dtype]

    @property
    def torch_device(self) -> torch.device:
        """Where the teacher runs; InputError when there is no such device."""
        return usable_device(self.device)

    @property
    def precision(self) -> str:
        """What decides the rounding of the targets, for the fingerprint: `bfloat16`, or `bfloat16+nf4`."""
        return self.dtype if self.quantization == "none" else f"{self.dtype}+{self.quantization}"
