"""Checkpoints in the official MobileVLM V2 layout, from a folder or the hub: load, save, fingerprint."""

import hashlib
import json
import shutil
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers.models.clip.modeling_clip import CLIPVisionEmbeddings
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from alignkd.disk.whole_file import write_whole
from alignkd.vlm.errors import InputError, one_line
from alignkd.vlm.finite import check_finite, is_finite
from alignkd.vlm.hardware.devices import Quantization, keep_float32_exact, usable_device
from alignkd.vlm.inputs.examples import ExampleBuilder
from alignkd.vlm.inputs.images import ImageProcessor
from alignkd.vlm.inputs.templates import TemplateName
from alignkd.vlm.inputs.tokenizer import LegacyLlamaTokenizer
from alignkd.vlm.model.config import VLMConfig, load_config
from alignkd.vlm.model.mobilevlm import MobileVLM
from alignkd.vlm.model.quantization import Quantizer
from alignkd.vlm.weights.hub import TOKENIZER_FILES, resolve_checkpoint
from alignkd.vlm.weights.sources import WeightSource, check_sources, weight_sources
from alignkd.vlm.weights.writer import MAX_SHARD_BYTES, write_weights

__all__ = ["load_example_builder", "load_model", "new_model", "resolve_checkpoint", "save_model", "weights_fingerprint"]

VISION_CONFIG_FILES = ("config.json", "preprocessor_config.json")


def load_model(
    checkpoint: str | Path,
    *,
    vision_config: Path | None = None,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
    quantization: Quantization = "none",
) -> MobileVLM:
    """The model of a checkpoint folder or hub id, in evaluation mode.

    Parameters are built on the meta device; each tensor goes from the mapped file straight to its dtype and device.
    So host memory holds the weights once at most, and one tensor of them if the device is a GPU.

    Args:
        checkpoint: folder in the official layout, or hub id (`org/name`, `org/name@revision`).
        vision_config: folder with the vision tower's `config.json`, overriding `mm_vision_tower`.
        dtype: of weights and arithmetic; of what is not quantised and of activations where `quantization` is given.
        quantization: `int8` or `nf4` quantise the decoder, see `alignkd.vlm.model.quantization`; for inference only.

    Raises:
        InputError: no checkpoint, keys that are unknown, missing or misshapen (all listed), no such device, no room
            on it, weights that are not finite, or no bitsandbytes.
    """
    folder = resolve_checkpoint(checkpoint)
    config = load_config(folder, vision_config=vision_config)
    target = usable_device(device)
    keep_float32_exact()
    with torch.device("meta"):
        model = MobileVLM(config)
    sources = weight_sources(folder)
    check_sources(folder, sources, {key: tuple(tensor.shape) for key, tensor in model.state_dict().items()})
    try:
        quantizer = Quantizer(model, quantization, dtype=dtype, device=target)
        model.load_state_dict(_read(sources, quantizer, dtype, target), assign=True, strict=quantization == "none")
        _materialise_buffers(model, target)
    except torch.OutOfMemoryError as error:
        raise InputError(
            f"{folder}: does not fit on {target} ({one_line(error)[:120]}); choose dtype bfloat16, quantization "
            "int8 or nf4 (teacher only), or device cpu"
        ) from error
    return model.eval()


def new_model(config: VLMConfig, *, seed: int) -> MobileVLM:
    """A randomly initialised model, the same for the same seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = MobileVLM(config)
        nn.init.normal_(model.lm_head.weight, std=config.llama.initializer_range)
    return model


def load_example_builder(
    checkpoint: str | Path,
    *,
    template: TemplateName,
    vision_config: Path | None = None,
    max_tokens: int | None = None,
) -> ExampleBuilder:
    """Tokenizer, template and image processor of a checkpoint; its weights are not needed."""
    folder = resolve_checkpoint(checkpoint, weights=False)
    config = load_config(folder, vision_config=vision_config)
    processor = ImageProcessor.from_preprocessor_config(
        config.preprocessor, int(config.vision.image_size), pad_to_square=config.pad_to_square
    )
    tokenizer = LegacyLlamaTokenizer(folder / "tokenizer.model")
    if len(tokenizer) > config.vocab_size:
        raise InputError(
            f"{folder}: tokenizer.model has {len(tokenizer)} pieces, config.json vocab_size {config.vocab_size}; "
            "they are of different checkpoints"
        )
    return ExampleBuilder(
        tokenizer=tokenizer,
        template=template,
        image_processor=processor,
        vision_tokens=config.vision_tokens,
        max_tokens=max_tokens,
    )


def weights_fingerprint(checkpoint: str | Path) -> str:
    """sha256 over config and weight files, in name order; a vision tower read from elsewhere is part of it."""
    folder = resolve_checkpoint(checkpoint)
    sources = weight_sources(folder)
    digest = hashlib.sha256()
    for file in [folder / "config.json", *(source.file for source in sources)]:
        found = file.stat()
        digest.update(_file_digest(file, found.st_size, found.st_mtime_ns))
    return digest.hexdigest()


@lru_cache(maxsize=64)
def _file_digest(file: Path, size: int, modified: int) -> bytes:
    """A checkpoint is tens of gigabytes, and a run asks for its fingerprint more than once."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").digest()


def save_model(
    model: MobileVLM,
    folder: Path,
    *,
    tokenizer_from: Path,
    dtype: torch.dtype | None = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> None:
    """Write `model` in the official layout: names, shapes and `config.json` as the original saves them.

    `config.json` is the one the model was loaded with, only `torch_dtype` follows the saved weights. llama.cpp's
    scripts for MobileVLM V2 find what they look for (see `alignkd.vlm.weights.writer`).

    Args:
        tokenizer_from: checkpoint folder whose tokenizer files are copied, and the vision tower's config if that is
            a folder inside it.
        dtype: of the saved weights; None keeps the model's.
        max_shard_bytes: more than this is written as numbered shards with an index.
    """
    folder.mkdir(parents=True, exist_ok=True)
    write_weights(model.state_dict(), folder, dtype=dtype, max_shard_bytes=max_shard_bytes)
    saved_dtype = str(dtype or next(model.parameters()).dtype).removeprefix("torch.")
    raw: dict[str, Any] = {**model.config.raw, "torch_dtype": saved_dtype}
    write_whole(folder / "config.json", json.dumps(raw, indent=2, sort_keys=True) + "\n")
    if tokenizer_from.resolve() == folder.resolve():
        return
    _copy_files(tokenizer_from, folder, (*TOKENIZER_FILES, "generation_config.json"))
    tower = Path(str(raw.get("mm_vision_tower")))
    is_inside = not tower.is_absolute() and ".." not in tower.parts
    if is_inside and (tokenizer_from / tower / "config.json").is_file():
        (folder / tower).mkdir(parents=True, exist_ok=True)
        _copy_files(tokenizer_from / tower, folder / tower, VISION_CONFIG_FILES)


def _copy_files(source: Path, target: Path, names: Sequence[str]) -> None:
    for name in names:
        if (source / name).is_file():
            shutil.copyfile(source / name, target / name)


def _read(
    sources: Sequence[WeightSource], quantizer: Quantizer, dtype: torch.dtype, device: torch.device
) -> dict[str, Tensor]:
    """Every tensor that the quantizer leaves, copied out of its file: the file may be replaced afterwards."""
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
    """Compute the buffers that no checkpoint holds and the meta device left empty; on the CPU, as everywhere."""
    for module in model.modules():
        if isinstance(module, CLIPVisionEmbeddings):
            positions = torch.arange(module.num_positions, device=device)[None]
            module.register_buffer("position_ids", positions, persistent=False)
    model.model.rotary_emb = LlamaRotaryEmbedding(config=model.config.llama).to(device)
