"""From a checkpoint folder to a model of transformers in evaluation mode, with its self-checks."""

import copy
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForImageTextToText

from alignkd.vlm.errors import InputError, one_line
from alignkd.vlm.families.huggingface.model.config import HuggingFaceConfig
from alignkd.vlm.families.huggingface.model.model import HuggingFaceModel, image_tensors
from alignkd.vlm.families.huggingface.model.parts import attentions_of
from alignkd.vlm.families.huggingface.model.quiet import quiet
from alignkd.vlm.families.huggingface.model.recorder import RECORDABLE, implementation_of
from alignkd.vlm.families.huggingface.model.self_checks import check_model
from alignkd.vlm.families.huggingface.model.weights.quantization import quantize
from alignkd.vlm.finite import check_finite, is_finite
from alignkd.vlm.hardware.devices import Quantization, keep_float32_exact, usable_device
from alignkd.vlm.inputs.examples import Example
from alignkd.vlm.weights.files import iter_weights, weight_files, weight_shapes
from alignkd.vlm.weights.key_patterns import group_keys


def build_model(
    folder: Path,
    config: HuggingFaceConfig,
    examples: Sequence[Example],
    *,
    dtype: torch.dtype,
    device: str | torch.device,
    quantization: Quantization,
) -> HuggingFaceModel:
    """The model of a checkpoint folder, in evaluation mode, after its self-checks.

    Weights are read from the mapped files in their dtype, so host memory holds them once at most.

    Args:
        examples: samples that the checkpoint's own processor made, for the self-checks; the first one has an image.
        dtype, device, quantization: as `Checkpoint.load_model`.

    Raises:
        InputError: as `Checkpoint.load_model`.
    """
    target = usable_device(device)
    keep_float32_exact()
    try:
        inner = read_model(folder, config, dtype)
        if quantization != "none":
            quantize(inner, quantization, after=config.attention_layer, dtype=dtype, device=target)
        inner.to(target)
        _check_values(inner, folder, dtype)
        picture = min(image_tensors(examples[0], target), key=_num_bytes)
        model = HuggingFaceModel(inner, config, picture).eval()
        if target.type != "meta":
            check_model(model, examples, where=folder, is_quantized=quantization != "none")
    except torch.OutOfMemoryError as error:
        raise InputError(
            f"{folder}: does not fit on {target} ({one_line(error)[:120]}); choose dtype bfloat16, quantization "
            "int8 or nf4 (a teacher, or a student that trains LoRA), or device cpu"
        ) from error
    return model


def read_model(folder: Path, config: HuggingFaceConfig, dtype: torch.dtype) -> Any:
    """The model on the CPU."""
    files = weight_files(folder)
    for file in files:
        weight_shapes(file)  # a damaged file is named
    with quiet():
        try:
            model, info = AutoModelForImageTextToText.from_pretrained(
                folder,
                config=copy.deepcopy(config.raw),
                dtype=dtype,
                local_files_only=True,
                trust_remote_code=False,
                ignore_mismatched_sizes=True,
                output_loading_info=True,
            )
        except (torch.OutOfMemoryError, MemoryError, InputError):
            raise
        except Exception as error:  # the loader raises many unrelated classes
            raise InputError(
                f"{folder}: transformers cannot load the weights ({type(error).__name__}: {one_line(error)[:160]}); "
                "take config.json and weights from the same checkpoint"
            ) from error
    _check_keys(folder, info)
    implementation = implementation_of(attentions_of(model)[0])
    if implementation not in RECORDABLE:
        raise InputError(
            f"{folder}: its attention function is {implementation!r}, expected {' or '.join(RECORDABLE)}; use a model "
            "of another architecture"
        )
    if any(tensor.dtype == dtype for file in files for _, tensor in iter_weights(file)):
        for parameter in model.parameters():
            # a view of the mapped file until now: a file that is changed later would change the model
            parameter.data = parameter.data.clone()
    return model


def _check_keys(folder: Path, info: Mapping[str, Any]) -> None:
    """Refuse weights that are not exactly those of the model.

    Raises:
        InputError: one line with every key that is missing, unknown or misshapen.
    """
    problems: defaultdict[tuple[str, str], list[str]] = defaultdict(list)
    mismatched = {key: (found, expected) for key, found, expected in info["mismatched_keys"]}
    problems["missing ", ""] += [key for key in info["missing_keys"] if key not in mismatched]
    problems["unknown ", ""] += info["unexpected_keys"]
    for key, (found, expected) in mismatched.items():
        problems["", f" has shape {tuple(found)}, expected {tuple(expected)}"].append(key)
    if any(problems.values()) or info["error_msgs"]:
        listed = sorted(f"{head}{key}{tail}" for (head, tail), keys in problems.items() for key in group_keys(keys))
        listed += [one_line(message)[:160] for message in info["error_msgs"]]
        raise InputError(
            f"{folder}: weights do not fit config.json: {'; '.join(listed)}; take config.json and weights from the "
            "same checkpoint"
        )


def _check_values(model: Any, folder: Path, dtype: torch.dtype) -> None:
    """Refuse weights that are not finite, in the file or in `dtype`."""
    for name, parameter in model.named_parameters():
        if is_finite(parameter):
            continue
        for file in weight_files(folder):
            for key, tensor in iter_weights(file):
                check_finite(tensor, key, file)
        raise InputError(f"{folder}: {name} does not fit {dtype}; choose dtype bfloat16 or float32")


def _num_bytes(image: Mapping[str, torch.Tensor]) -> int:
    return sum(values.nbytes for values in image.values())
