"""What phase 1 is told about the teacher; what of it is kept is in `store_config`."""

from typing import Literal

import torch

from alignkd.vlm.hardware.devices import TORCH_DTYPES, DtypeName, Quantization, usable_device
from alignkd.vlm.settings import CheckpointName, Count, Settings, UserPath


class TeacherConfig(Settings):
    """The teacher and how it is run.

    Attributes:
        checkpoint: folder in the official layout, or hub id.
        vision_config: folder with the vision tower's config.json, overriding the checkpoint's `mm_vision_tower`.
        dtype: of the teacher's weights and arithmetic.
        quantization: `int8` or `nf4` quantise the decoder's linear layers (needs bitsandbytes), so that a large teacher
            fits a small card; attention and vision targets stay those of `dtype`, logits carry the error.
        token_budget: padded tokens (text + vision) of a forward pass; samples of similar length share one, and a sample
            that is longer by itself has one of its own.
        batch: most samples of a forward pass, whatever the budget.
        window: consecutive samples of a shard that may share forward passes: more means less padding, and more records
            in memory, because they are written in the order of the plan.
        data_workers: threads that read, decode and tokenise the samples to come.
        sanity: what becomes of a teacher that fails the checks before the first shard (`sanity.py`): `stop` ends the
            run, `warn` prints a warning and continues, `off` checks nothing.
        device: torch device; None takes a GPU when there is one.
    """

    checkpoint: CheckpointName
    vision_config: UserPath | None = None
    dtype: DtypeName = "float32"
    quantization: Quantization = "none"
    token_budget: Count = 8192
    batch: Count = 64
    window: Count = 128
    data_workers: Count = 2
    sanity: Literal["stop", "warn", "off"] = "stop"
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
