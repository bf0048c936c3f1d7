"""Where the parameters of a model of transformers are in its weight files, without loading the model."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

from alignkd.vlm.errors import InputError
from alignkd.vlm.finite import check_finite
from alignkd.vlm.weights.files import iter_weights, weight_files, weight_shapes


class ParameterFiles:
    """The weight files of a checkpoint, read by the names that the parameters have in the model.

    Args:
        folder: a checkpoint.
        model: its model, on the meta device.
    """

    def __init__(self, folder: Path, model: Any) -> None:
        self._folder, self._model = folder, model
        # views of the mapped files: the pages of tensors that nobody reads are never loaded
        self._mapped: dict[Path, dict[str, Tensor]] = {}
        renamed = _Renaming(model)
        self._places = {renamed(key): (file, key) for file in weight_files(folder) for key in weight_shapes(file)}

    def read(self, parameter: Tensor, dtype: torch.dtype) -> Tensor:
        """The values of a parameter of the model, copied.

        Raises:
            InputError: no file holds a tensor under a name that transformers maps to it or to what it is shared with,
                or it is misshapen or not finite.
        """
        names = _names_of(parameter, self._model)
        for name in names:
            if name in self._places:
                return self._tensor(name, parameter).to(dtype, copy=True)
        raise InputError(
            f"{self._folder}: no weight file holds {' or '.join(names)}; take config.json and weights from the same "
            "checkpoint"
        )

    def tensors_of(self, module: Any) -> Iterator[tuple[str, Tensor]]:
        """The parameters of a sub-module, by their names in it; views of the mapped files.

        Raises:
            InputError: one is missing.
        """
        prefix = next(name for name, other in self._model.named_modules() if other is module)
        for name, parameter in module.named_parameters():
            if (full := f"{prefix}.{name}") not in self._places:
                raise InputError(f"{self._folder}: no weight file holds {full}; give a complete checkpoint")
            yield name, self._tensor(full, parameter)

    def _tensor(self, name: str, parameter: Tensor) -> Tensor:
        file, wanted = self._places[name]
        if file not in self._mapped:
            self._mapped[file] = dict(iter_weights(file))
        tensor = self._mapped[file][wanted]
        if tensor.shape != parameter.shape:
            raise InputError(
                f"{file}: {wanted} has shape {tuple(tensor.shape)}, config.json says {tuple(parameter.shape)}; take "
                "both from the same checkpoint"
            )
        check_finite(tensor, wanted, file)
        return tensor


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
