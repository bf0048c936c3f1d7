"""The configuration of the teacher in phase 1; `store_config` configures what is kept."""

from typing import Literal

import torch

from alignkd.vlm.hardware.devices import TORCH_DTYPES, DtypeName, Quantization, usable_device
from alignkd.vlm.kernels.choice import Kernels
from alignkd.vlm.settings import CheckpointName, Count, ProcessorKind, Settings, UserPath


class TeacherConfig(Settings):
    """The teacher and how it is run.

    Attributes:
        checkpoint: folder or hub id of a MobileVLM checkpoint in the official layout, or of an image-text-to-text model
            of transformers.
        vision_config: folder with the vision tower's config.json, overriding the `mm_vision_tower` of a MobileVLM
            checkpoint.
        processor: image processor of other models: `auto` takes the one that transformers selects, `pil` the one that
            needs no torchvision and gives slightly other pixels.
        dtype: dtype of the teacher's weights and arithmetic.
        quantization: `int8` or `nf4` quantise the decoder's linear layers (needs bitsandbytes), so that a large teacher
            fits a small GPU; vision targets are as without, logits and the attention of deeper layers have a
            quantisation error.
        kernels: what computes the decoder's layers: `torch`; `liger`, fused kernels of the library Liger for RMSNorm,
            rotary positions and the gated MLP, which need a CUDA device; `compile`, layers that torch compiles, which
            needs a C++ compiler. Targets differ by rounding. Answers are generated with `torch` in place of `compile`.
        token_budget: padded tokens (text + vision) of a forward pass; samples of similar length share one, and a sample
            longer than the budget has one of its own.
        batch: maximum number of samples of a forward pass.
        window: consecutive samples of a shard that may share forward passes. A larger window means less padding, and
            more records in memory, because they are written in the order of the plan. The image arrays of two windows
            are in memory, too, up to 4 GiB; beyond that, they are computed twice. Lower it for large images.
        data_workers: threads that read, decode and tokenise samples ahead.
        sanity: what to do if the teacher fails the checks before the first shard (`sanity.py`): `stop` ends the run,
            `warn` prints a warning and continues, `off` disables the checks.
        device: torch device; None selects a GPU if there is one.
    """

    checkpoint: CheckpointName
    vision_config: UserPath | None = None
    processor: ProcessorKind = "auto"
    dtype: DtypeName = "float32"
    quantization: Quantization = "none"
    kernels: Kernels = "torch"
    token_budget: Count = 8192
    batch: Count = 64
    window: Count = 128
    data_workers: Count = 2
    sanity: Literal["stop", "warn", "off"] = "stop"
    device: str | None = None

    @property
    def torch_dtype(self) -> torch.dtype:
        """`dtype` as a torch dtype."""
        return TORCH_DTYPES[self.dtype]

    @property
    def torch_device(self) -> torch.device:
        """The teacher's device.

        Raises:
            InputError: there is no such device.
        """
        return usable_device(self.device)

    @property
    def precision(self) -> str:
        """Precision of the targets for the fingerprint: `bfloat16`, or `bfloat16+nf4`."""
        return self.dtype if self.quantization == "none" else f"{self.dtype}+{self.quantization}"
