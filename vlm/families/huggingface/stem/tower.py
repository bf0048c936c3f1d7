"""The vision tower of a model of transformers without its decoder."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from alignkd.vlm.families.huggingface.checkpoint import HuggingFaceCheckpoint
from alignkd.vlm.families.huggingface.model.config import empty_model
from alignkd.vlm.families.huggingface.model.images import ImageEncoder
from alignkd.vlm.families.huggingface.model.parts import decoder_of, projector_names, tower_of
from alignkd.vlm.families.huggingface.model.tower_outputs import TowerFeatures, feature_layers, recorded_outputs
from alignkd.vlm.families.huggingface.model.weights.weight_names import ParameterFiles
from alignkd.vlm.families.huggingface.stem.cut import replace_module
from alignkd.vlm.inputs.batch import ImageTensors


class HuggingFaceTower:
    """Implements `Tower` of `alignkd.vlm.families.stem`.

    The class of the model stays as it is. Its projector is there too, because the model calls the tower through it.

    Args:
        checkpoint: of its weights only those of tower and projector are read.
        dtype: dtype of weights and arithmetic.

    Raises:
        InputError: a weight is missing or misshapen.
    """

    def __init__(self, checkpoint: HuggingFaceCheckpoint, dtype: torch.dtype) -> None:
        self._raw, self._dtype = checkpoint.config.raw, dtype
        path = checkpoint.folder / "config.json"
        whole = empty_model(self._raw, path)
        files, parameters = ParameterFiles(checkpoint.folder_with_weights, whole), whole.state_dict(keep_vars=True)
        kept = _names_of_vision(whole)
        weights = {name: files.read(value, dtype) for name, value in parameters.items() if name.startswith(kept)}
        self._model = _without_decoder(self._raw, path)
        self._model.load_state_dict(weights, strict=False, assign=True)
        _fill_buffers(self._model)
        # each image in a call of its own: right for every model, and the stem is told so
        self._encoder = ImageEncoder(self._model.base_model, joined=False)

    @torch.no_grad()
    def __call__(self, images: Sequence[ImageTensors]) -> TowerFeatures:
        """The tower's outputs, call by call."""
        tower, samples = tower_of(self._model), [0] * len(images)
        assert tower is not None
        with recorded_outputs(tower, feature_layers(self._raw)) as outputs:
            self._encoder.encode(images, samples, self._dtype)
        return TowerFeatures(images=images, samples=samples, joined=False, outputs=tuple(outputs))


def _names_of_vision(model: Any) -> tuple[str, ...]:
    """Prefixes of the names of tower and projector."""
    tower = tower_of(model)
    prefix = next(name for name, module in model.named_modules() if module is tower)
    return (f"{prefix}.", *projector_names(model))


def _without_decoder(raw: Any, path: Path) -> Any:
    """The model on the meta device, without what no image reaches before the decoder."""
    model = empty_model(raw, path)
    for part in (model.get_output_embeddings(), decoder_of(model)):
        replace_module(model, part, nn.Identity())
    return model.eval()


def _fill_buffers(model: Any) -> None:
    """Compute the buffers that no file holds."""
    for parameter in model.parameters():
        assert not parameter.is_meta
        parameter._is_hf_initialized = True
    for module in model.modules():
        for name, buffer in module.named_buffers(recurse=False):
            if buffer.is_meta:
                setattr(module, name, torch.empty_like(buffer, device="cpu"))
            else:
                buffer._is_hf_initialized = True
    model.initialize_weights()
    model.requires_grad_(False)
