"""Official MobileVLM V2 checkpoint folders: load, save, fingerprint."""

import hashlib
import json
import pickle
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers.models.clip.modeling_clip import CLIPVisionEmbeddings
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from vlm.config import VLMConfig, load_config
from vlm.conversations import read_json
from vlm.errors import InputError, one_line
from vlm.examples import ExampleBuilder
from vlm.images import ImageProcessor
from vlm.model import MobileVLM
from vlm.templates import TemplateName
from vlm.tokenizer import LegacyLlamaTokenizer

# Buffers that older versions of transformers saved; they follow from the config.
DERIVED_KEYS = ("rotary_emb.inv_freq", "embeddings.position_ids")
TOKENIZER_FILES = (
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "generation_config.json",
)


def load_model(
    checkpoint: str | Path, *, vision_config: Path | None = None, dtype: torch.dtype = torch.float32
) -> MobileVLM:
    """The model of a checkpoint folder or hub id, in evaluation mode on the CPU.

    Parameters are built on the meta device and the loaded tensors assigned, so peak memory is about the weights once.

    Raises:
        InputError: no checkpoint, or keys that are unknown, missing or misshapen (all listed).
    """
    folder = resolve_checkpoint(checkpoint)
    config = load_config(folder, vision_config=vision_config)
    with torch.device("meta"):
        model = MobileVLM(config)
    weights = {key: tensor.to(dtype) for key, tensor in read_weights(folder).items() if not key.endswith(DERIVED_KEYS)}
    _check_weights(folder, model, weights)
    model.load_state_dict(weights, assign=True)
    _materialise_buffers(model)
    return model.eval()


def new_model(config: VLMConfig, *, seed: int) -> MobileVLM:
    """A randomly initialised model, the same for the same seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = MobileVLM(config)
        nn.init.normal_(model.lm_head.weight, std=config.llama.initializer_range)
    return model


def resolve_checkpoint(checkpoint: str | Path) -> Path:
    """A local folder as it is; anything else is a hub id, taken from the hub's cache or fetched."""
    if Path(checkpoint).is_dir():
        return Path(checkpoint)
    name = str(checkpoint)
    if name.count("/") != 1 or name.startswith((".", "/")):
        raise InputError(f"{name}: no such checkpoint folder; check the path")
    from huggingface_hub import snapshot_download  # slow to import, rarely needed

    try:
        return Path(snapshot_download(name))
    except (OSError, ValueError) as error:
        raise InputError(
            f"{name}: neither a local folder nor reachable on the hub ({one_line(error)[:120]}); "
            "download the checkpoint and give its folder"
        ) from error


def load_example_builder(
    checkpoint: str | Path,
    *,
    template: TemplateName,
    vision_config: Path | None = None,
    max_tokens: int | None = None,
) -> ExampleBuilder:
    """Tokenizer, template and image processor of a checkpoint folder."""
    folder = resolve_checkpoint(checkpoint)
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


def weight_files(folder: Path) -> list[Path]:
    """The weight files of a checkpoint: those the index names, else the single file.

    Raises:
        InputError: none is there, or the index names a missing one.
    """
    for stem, suffix in (("model", "safetensors"), ("pytorch_model", "bin")):
        index = folder / f"{stem}.{suffix}.index.json"
        if index.is_file():
            files = sorted({folder / name for name in read_json(index)["weight_map"].values()})
            missing = [file.name for file in files if not file.is_file()]
            if missing:
                raise InputError(f"{index}: names {', '.join(missing)}, which is not there; finish the download")
            return files
        if (folder / f"{stem}.{suffix}").is_file():
            return [folder / f"{stem}.{suffix}"]
    raise InputError(f"{folder}: no model.safetensors or pytorch_model.bin (nor their index); finish the download")


def read_weights(folder: Path) -> dict[str, Tensor]:
    """Every tensor of a checkpoint, memory-mapped; `.bin` files are read as tensors only, never unpickled freely."""
    weights: dict[str, Tensor] = {}
    for file in weight_files(folder):
        try:
            if file.suffix == ".safetensors":
                weights.update(load_file(file))
            else:
                weights.update(torch.load(file, map_location="cpu", weights_only=True, mmap=True))
        except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as error:
            raise InputError(f"{file}: broken weight file ({one_line(error)[:120]}); download it again") from error
    return weights


def weights_fingerprint(checkpoint: str | Path) -> str:
    """sha256 over config and weight files, in name order."""
    folder = resolve_checkpoint(checkpoint)
    digest = hashlib.sha256()
    for file in [folder / "config.json", *weight_files(folder)]:
        with file.open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()


def save_model(model: MobileVLM, folder: Path, *, tokenizer_from: Path, dtype: torch.dtype | None = None) -> None:
    """Write `model` in the official layout.

    Args:
        tokenizer_from: checkpoint folder whose tokenizer files are copied, and the vision tower's config if that is
            a folder inside it.
        dtype: of the saved weights; None keeps the model's.
    """
    folder.mkdir(parents=True, exist_ok=True)
    weights = {
        key: tensor.detach().to("cpu", dtype or tensor.dtype).contiguous() for key, tensor in model.state_dict().items()
    }
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    saved_dtype = str(dtype or next(model.parameters()).dtype).removeprefix("torch.")
    raw: dict[str, Any] = {**model.config.raw, "torch_dtype": saved_dtype}
    (folder / "config.json").write_text(json.dumps(raw, indent=2, sort_keys=True) + "\n")
    if tokenizer_from.resolve() == folder.resolve():
        return
    for name in TOKENIZER_FILES:
        if (tokenizer_from / name).is_file():
            shutil.copyfile(tokenizer_from / name, folder / name)
    tower = Path(str(raw.get("mm_vision_tower")))
    if not tower.is_absolute() and (tokenizer_from / tower / "config.json").is_file():
        shutil.copytree(tokenizer_from / tower, folder / tower, dirs_exist_ok=True)


def _check_weights(folder: Path, model: MobileVLM, weights: Mapping[str, Tensor]) -> None:
    expected = {key: tuple(tensor.shape) for key, tensor in model.state_dict().items()}
    problems = [f"missing {key}" for key in expected.keys() - weights.keys()]
    problems += [f"unknown {key}" for key in weights.keys() - expected.keys()]
    problems += [
        f"{key} has shape {tuple(weights[key].shape)}, expected {shape}"
        for key, shape in expected.items()
        if key in weights and tuple(weights[key].shape) != shape
    ]
    if problems:
        raise InputError(f"{folder}: weights do not fit config.json: {'; '.join(sorted(problems))}")


def _materialise_buffers(model: MobileVLM) -> None:
    """Compute the buffers that no checkpoint holds and the meta device left empty."""
    for module in model.modules():
        if isinstance(module, CLIPVisionEmbeddings):
            module.register_buffer("position_ids", torch.arange(module.num_positions)[None], persistent=False)
    model.model.rotary_emb = LlamaRotaryEmbedding(config=model.config.llama)
