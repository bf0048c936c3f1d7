"""The head, read from weight files without loading the model."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

from alignkd.vlm.errors import InputError
from alignkd.vlm.families.family import Head
from alignkd.vlm.families.huggingface.model.config import empty_model
from alignkd.vlm.families.huggingface.model.head import described_head
from alignkd.vlm.weights.files import iter_weights, weight_files, weight_shapes


def read_head(folder: Path, raw: Any, dtype: torch.dtype) -> Head:
    """The head with its tensors in `dtype`; no other tensor is copied.

    Args:
        folder: a checkpoint.
        raw: its configuration in transformers.

    Raises:
        InputError: no file holds a tensor under a name that transformers maps to it or to what it is shared with.
    """
    model = empty_model(raw, folder / "config.json")
    output = model.get_output_embeddings()
    renamed = _Renaming(model)
    places = {renamed(key): (file, key) for file in weight_files(folder) for key in weight_shapes(file)}

    def read(parameter: Tensor) -> Tensor:
        names = _names_of(parameter, model)
        for name in names:
            if name in places:
                file, wanted = places[name]
                return next(tensor.to(dtype, copy=True) for key, tensor in iter_weights(file) if key == wanted)
        raise InputError(
            f"{folder}: no weight file holds {' or '.join(names)}; take config.json and weights from the same "
            "checkpoint"
        )

    bias = getattr(output, "bias", None)
    return described_head(raw, read(output.weight), None if bias is None else read(bias))


def _names_of(parameter: Tensor, model: Any) -> list[str]:
    """Names in the model of a parameter; those of what it is shared with come first, as they do in files."""
    names = [name for name, other in model.named_parameters(remove_duplicate=False) if other is parameter]
    shared = model.all_tied_weights_keys
    names += [other for name in list(names) if (other := shared.get(name)) is not None and other not in names]
    return sorted(names, key=lambda name: name in shared)


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
