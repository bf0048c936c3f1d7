"""The matrix of the head, read from weight files without loading the model."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

from alignkd.vlm.errors import InputError
from alignkd.vlm.families.huggingface.model.config import empty_model
from alignkd.vlm.weights.files import iter_weights, weight_files, weight_shapes


def read_head(folder: Path, raw: Any, dtype: torch.dtype) -> Tensor:
    """The head's matrix [V, D]; at most one other tensor of the file is held beside it.

    Args:
        folder: a checkpoint.
        raw: its configuration in transformers.

    Raises:
        InputError: no file holds it under a name that transformers maps to the head or to what the head shares.
    """
    model = empty_model(raw, folder / "config.json")
    names = _names_of_head(model)
    renamed = _Renaming(model)
    found: dict[str, tuple[Path, str]] = {}
    for file in weight_files(folder):
        for key in weight_shapes(file):
            if (name := renamed(key)) in names:
                found[name] = file, key
    for name in names:
        if name in found:
            file, key = found[name]
            return next(tensor.to(dtype, copy=True) for other, tensor in iter_weights(file) if other == key)
    raise InputError(
        f"{folder}: no weight file holds {' or '.join(names)}; take config.json and weights from the same checkpoint"
    )


def _names_of_head(model: Any) -> list[str]:
    """Names in the model of the head's matrix, its own first, then those that it shares it with."""
    weight = model.get_output_embeddings().weight
    names = [name for name, parameter in model.named_parameters(remove_duplicate=False) if parameter is weight]
    shared = model.all_tied_weights_keys
    names += [other for name in list(names) if (other := shared.get(name)) is not None and other not in names]
    return sorted(names, key=lambda name: name not in shared)


class _Renaming:
    """Name in a weight file -> name in the model, by the rules with which transformers loads it."""

    def __init__(self, model: Any) -> None:
        rules = get_model_conversion_mapping(model)
        self._renamings = [rule for rule in rules if isinstance(rule, WeightRenaming)]
        self._converters = [rule for rule in rules if isinstance(rule, WeightConverter)]
        self._prefix, self._expected = model.base_model_prefix, model.state_dict()

    def __call__(self, key: str) -> str | None:
        """None for a tensor that is converted as well."""
        name, converter = rename_source_key(key, self._renamings, self._converters, self._prefix, self._expected)
        if name not in self._expected and key in self._expected:
            name, converter = rename_source_key(key, [], [], self._prefix, self._expected)
        return None if converter is not None else str(name)
