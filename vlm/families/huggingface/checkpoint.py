"""A checkpoint of any vision-language model of transformers, in the layout of the hub."""

from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from alignkd.vlm.errors import InputError
from alignkd.vlm.families.family import Head, VisionLanguageModel
from alignkd.vlm.families.huggingface.model.config import HuggingFaceConfig, load_config
from alignkd.vlm.families.huggingface.model.model import HuggingFaceModel
from alignkd.vlm.families.huggingface.model.probe import probe_examples
from alignkd.vlm.families.huggingface.model.weights.head_weights import read_head
from alignkd.vlm.families.huggingface.model.weights.loading import build_model
from alignkd.vlm.families.huggingface.model.weights.saving import is_complete, present_files, save_model
from alignkd.vlm.families.huggingface.model.weights.sizes import model_size
from alignkd.vlm.families.sizes import ModelSize
from alignkd.vlm.hardware.devices import Quantization
from alignkd.vlm.inputs.examples import Preparation
from alignkd.vlm.settings import ProcessorKind
from alignkd.vlm.weights.files import files_fingerprint, weight_files
from alignkd.vlm.weights.hub import resolve_checkpoint

if TYPE_CHECKING:
    from alignkd.vlm.families.huggingface.inputs.preparation import HuggingFacePreparation


class HuggingFaceCheckpoint:
    """One checkpoint of a run; opened once, its parts are read when first used.

    Attributes:
        name: folder or hub id, as given.
        folder: local folder that holds the files.
        processor: which image processor, see `CheckpointFolder`.
    """

    def __init__(
        self, name: str | Path, folder: Path, *, processor: ProcessorKind = "auto", has_weights: bool = True
    ) -> None:
        self.name, self.folder, self.processor = name, folder, processor
        self._has_weights = has_weights

    @property
    def family(self) -> str:
        """Name of the family in stores and messages."""
        return "huggingface"

    @cached_property
    def config(self) -> HuggingFaceConfig:
        """Sizes of the model.

        Raises:
            InputError: `config.json` is unusable, or of a model that is not supported.
        """
        return load_config(self.folder)

    def size(self) -> ModelSize:
        """Shapes, parameter counts and weight bytes; needs no weights."""
        return model_size(str(self.name), self.config, self.folder)

    @cached_property
    def fingerprint(self) -> str:
        """sha256 over configuration and weight files in name order; 64 hex digits. Every byte is read."""
        return files_fingerprint([self.folder / "config.json", *weight_files(self.folder_with_weights)])

    @property
    def settings_fingerprint(self) -> dict[str, str]:
        """The family: all else that decides the outputs is in the checkpoint's files, or the processor has it."""
        return {"family": self.family}

    def preparation(self, template: str | None = None, *, max_tokens: int | None = None) -> Preparation:
        """Tokenizer, chat template and image processor; needs no weights.

        Args:
            template: must be None: the checkpoint has its own chat template.
            max_tokens: maximum number of embedded tokens of a sample, or None.

        Raises:
            InputError: unusable tokenizer or processor, or a template is named.
        """
        if template is not None:
            raise InputError(
                f"{self.name}: template {template!r}, but this checkpoint has its own chat template; leave "
                "data.template out"
            )
        return replace(self._unlimited_preparation, max_tokens=max_tokens)

    @cached_property
    def _unlimited_preparation(self) -> "HuggingFacePreparation":
        """Opened once: the self-checks of the model need it, too."""
        # its libraries are not needed by what opens a checkpoint for its sizes
        from alignkd.vlm.families.huggingface.inputs.opening import open_preparation

        return open_preparation(self.folder, processor=self.processor)

    def load_model(
        self,
        *,
        dtype: torch.dtype = torch.float32,
        device: str | torch.device = "cpu",
        quantization: Quantization = "none",
    ) -> HuggingFaceModel:
        """The model in evaluation mode, after the self-checks.

        Args:
            dtype: dtype of weights and arithmetic; with `quantization`, of activations and of the layers that are not
                quantised.
            quantization: `int8` or `nf4` quantise the decoder, see `model/quantization.py`.

        Raises:
            InputError: keys that are unknown, missing or misshapen (all listed), no such device, not enough memory on
                it, weights that are not finite, no bitsandbytes, an unusable processor, or a self-check that failed.
        """
        examples = probe_examples(self.preparation())
        return build_model(
            self.folder_with_weights, self.config, examples, dtype=dtype, device=device, quantization=quantization
        )

    def attachments(self) -> dict[str, bytes]:
        """Name -> content of the files of tokenizer and processor, in the folder `processor`."""
        return {f"processor/{name}": (self.folder / name).read_bytes() for name in present_files(self.folder)}

    def lm_head(self, dtype: torch.dtype) -> Head:
        """The output head, its tensors in `dtype`, read from the weight files without loading the model."""
        return read_head(self.folder_with_weights, self.config.raw, dtype)

    def save(self, model: VisionLanguageModel, folder: Path) -> None:
        """Write a trained model in the hub's layout, with the files of this checkpoint's tokenizer and processor.

        Raises:
            OSError: a file cannot be written.
        """
        assert isinstance(model, HuggingFaceModel)
        save_model(model.model, folder, processor_from=self.folder)

    def is_complete(self, folder: Path) -> bool:
        """Whether `folder` holds everything that `save` writes, in files that can be opened."""
        return is_complete(folder, processor_from=self.folder)

    @property
    def folder_with_weights(self) -> Path:
        """The folder, once it holds the weights; a hub id's are fetched."""
        return self.folder if self._has_weights else resolve_checkpoint(self.name)
