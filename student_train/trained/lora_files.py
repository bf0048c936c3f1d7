"""LoRA as files in the layout of peft, so that `PeftModel.from_pretrained` puts it on the original model."""

import logging
from collections.abc import Iterator, Mapping
from pathlib import Path

from safetensors import SafetensorError
from torch import Tensor, nn

from alignkd.student_train.trained.lora import FIRST, SECOND, lora_layers
from alignkd.student_train.trained.settings import LoraSettings
from alignkd.vlm.data.read_json import read_json
from alignkd.vlm.errors import InputError
from alignkd.vlm.families.family import VisionLanguageModel
from alignkd.vlm.weights.bitsandbytes import without_advice
from alignkd.vlm.weights.tensor_file import open_tensors, save_tensors

logger = logging.getLogger(__name__)
CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_PREFIX = "base_model.model."
# Containers that peft cannot wrap: it wraps their members.
_CONTAINERS = (nn.ModuleList, nn.ModuleDict)


def save_lora(
    folder: Path, model: VisionLanguageModel, masters: Mapping[str, Tensor], lora: LoraSettings, *, base: str
) -> None:
    """Write LoRA and, if it was trained, the projector; names are those of the model that other libraries load.

    Args:
        folder: created.
        model: the student, LoRA still in it.
        masters: LoRA's matrices in float32, by their names in `model`.
        base: folder or hub id of the student that training started from.

    Raises:
        OSError: a file cannot be written.
    """
    without_advice()
    from peft import LoraConfig

    folder.mkdir(parents=True, exist_ok=True)
    cut = len(model.library_prefix)
    names = [name for name, _ in lora_layers(model)]
    tensors = {
        f"{_PREFIX}{name[cut:]}.{matrix.replace('.default', '')}": masters[f"{name}.{matrix}"]
        for name in names
        for matrix in (FIRST, SECOND)
    }
    saved = list(_projector_modules(model)) if lora.projector else []
    for name in saved:
        for inner, parameter in model.get_submodule(name).named_parameters():
            tensors[f"{_PREFIX}{name[cut:]}.{inner}"] = parameter.detach().cpu().clone()
    config = LoraConfig(
        base_model_name_or_path=base,
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=[name[cut:] for name in names],
        modules_to_save=[name[cut:] for name in saved] or None,
        bias="none",
        inference_mode=True,
    )
    config.save_pretrained(folder)
    save_tensors({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / WEIGHTS)


def is_lora_complete(folder: Path) -> bool:
    """Whether a folder holds what `save_lora` writes, in files that can be opened."""
    try:
        with open_tensors(folder / WEIGHTS):
            pass
        return isinstance(read_json(folder / CONFIG), dict)
    except (InputError, OSError, SafetensorError):
        return False


def _projector_modules(model: VisionLanguageModel) -> Iterator[str]:
    """Names of the modules of the projector; parameters without a module of their own are in the student only."""
    for prefix in model.projector_prefixes:
        if prefix.endswith("."):
            yield from _without_containers(prefix.removesuffix("."), model.get_submodule(prefix.removesuffix(".")))
        else:
            logger.warning(
                "%s is trained, but peft cannot save it because it is not a module; it is in the exported student, not "
                "in lora/",
                prefix,
            )


def _without_containers(name: str, module: nn.Module) -> Iterator[str]:
    if not isinstance(module, _CONTAINERS):
        if any(True for _ in module.parameters()):
            yield name
        return
    for inner, child in module.named_children():
        yield from _without_containers(f"{name}.{inner}", child)
