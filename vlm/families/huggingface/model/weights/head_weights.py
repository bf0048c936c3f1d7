"""The head, read from weight files without loading the model."""

from pathlib import Path
from typing import Any

import torch

from alignkd.vlm.families.family import Head
from alignkd.vlm.families.huggingface.model.config import empty_model
from alignkd.vlm.families.huggingface.model.head import described_head
from alignkd.vlm.families.huggingface.model.weights.weight_names import ParameterFiles


def read_head(folder: Path, raw: Any, dtype: torch.dtype) -> Head:
    """The head with its tensors in `dtype`; no other tensor is copied.

    Args:
        folder: a checkpoint.
        raw: its configuration in transformers.

    Raises:
        InputError: as `ParameterFiles.read`.
    """
    model = empty_model(raw, folder / "config.json")
    output, files = model.get_output_embeddings(), ParameterFiles(folder, model)
    bias = getattr(output, "bias", None)
    return described_head(raw, files.read(output.weight, dtype), None if bias is None else files.read(bias, dtype))
