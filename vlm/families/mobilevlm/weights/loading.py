"""From weight files to a model: parameters are built on the meta device, then filled tensor by tensor."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers.models.clip.modeling_clip import CLIPVisionEmbeddings
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from alignkd.vlm.errors import InputError, one_line
from alignkd.vlm.families.mobilevlm.model.config import VLMConfig
from alignkd.vlm.families.mobilevlm.model.mobilevlm import MobileVLM
from alignkd.vlm.families.mobilevlm.model.quantization import Quantizer
from alignkd.vlm.families.mobilevlm.weights.sources import WeightSource, check_sources
from alignkd.vlm.finite import check_finite, is_finite
from alignkd.vlm.hardware.devices import Quantization, keep_float32_exact, usable_device


def build_model(
    folder: Path,
    config: VLMConfig,
    sources: Sequence[WeightSource],
    *,
    dtype: torch.dtype,
    device: str | torch.device,
    quantization: Quantization,
) -> MobileVLM:
    """The model of a checkpoint folder, in evaluation mode.

    Each tensor goes from the mapped file straight to its dtype and device. So host memory holds the weights once at
    most, and one tensor at a time if the device is a GPU.

    Args:
        folder: where the checkpoint is, for messages.
        sources: its weight files.
        dtype, device, quantization: as `Checkpoint.load_model`.

    Raises:
        InputError: as `Checkpoint.load_model`.
    """
    target = usable_device(device)
    keep_float32_exact()
    with torch.device("meta"):
        model = MobileVLM(config)
    check_sources(folder, sources, {key: tuple(tensor.shape) for key, tensor in model.state_dict().items()})
    try:
        quantizer = Quantizer(model, quantization, dtype=dtype, device=target)
        model.load_state_dict(_read(sources, quantizer, dtype, target), assign=True, strict=quantization == "none")
        _materialise_buffers(model, target)
    except torch.OutOfMemoryError as error:
        raise InputError(
            f"{folder}: does not fit on {target} ({one_line(error)[:120]}); choose dtype bfloat16, quantization "
            "int8 or nf4 (a teacher, or a student that trains LoRA), or device cpu"
        ) from error
    return model.eval()


def new_model(config: VLMConfig, *, seed: int) -> MobileVLM:
    """A randomly initialised model, the same for the same seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = MobileVLM(config)
        nn.init.normal_(model.lm_head.weight, std=config.llama.initializer_range)
    return model


def _read(
    sources: Sequence[WeightSource], quantizer: Quantizer, dtype: torch.dtype, device: torch.device
) -> dict[str, Tensor]:
    """The tensors that are not quantised, copied, so that a file that is replaced later does not change the model."""
    weights: dict[str, Tensor] = {}
    for source in sources:
        for key, tensor in source.tensors():
            if quantizer.take(key, tensor):
                check_finite(tensor, key, source.file)
                continue
            weights[key] = tensor.to(device, dtype, copy=True)
            if not is_finite(weights[key]):
                check_finite(tensor, key, source.file)
                raise InputError(f"{source.file}: {key} does not fit {dtype}; choose dtype bfloat16 or float32")
    return weights


def _materialise_buffers(model: MobileVLM, device: torch.device) -> None:
    """Compute the buffers that no checkpoint holds and that the meta device left empty."""
    materialise_positions(model, device)
    # computed on the CPU on every machine: a GPU rounds differently
    model.model.rotary_emb = LlamaRotaryEmbedding(config=model.config.llama).to(device)


def materialise_positions(tower: nn.Module, device: torch.device) -> None:
    """Compute the numbers of the positions in a vision tower, which the meta device left empty."""
    for module in tower.modules():
        if isinstance(module, CLIPVisionEmbeddings):
            positions = torch.arange(module.num_positions, device=device)[None]
            module.register_buffer("position_ids", positions, persistent=False)
