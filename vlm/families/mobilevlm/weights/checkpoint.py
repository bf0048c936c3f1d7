"""A checkpoint in the official MobileVLM V2 layout, from a folder or the hub: found once, each part read once."""

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, Self, cast, get_args

import torch
from safetensors import SafetensorError

from alignkd.vlm.errors import InputError
from alignkd.vlm.families.family import Head, VisionLanguageModel
from alignkd.vlm.families.mobilevlm.inputs.images import ImageProcessor
from alignkd.vlm.families.mobilevlm.inputs.preparation import MobileVLMPreparation
from alignkd.vlm.families.mobilevlm.inputs.templates import TemplateName
from alignkd.vlm.families.mobilevlm.inputs.tokenizer import LegacyLlamaTokenizer
from alignkd.vlm.families.mobilevlm.model.config import VLMConfig, load_config, parse_config
from alignkd.vlm.families.mobilevlm.model.mobilevlm import MobileVLM
from alignkd.vlm.families.mobilevlm.model.sizes import model_size
from alignkd.vlm.families.mobilevlm.model.tower_settings import settings_fingerprint
from alignkd.vlm.families.mobilevlm.weights.loading import build_model
from alignkd.vlm.families.mobilevlm.weights.saving import save_model
from alignkd.vlm.families.mobilevlm.weights.sources import WeightSource, weight_sources
from alignkd.vlm.families.sizes import ModelSize
from alignkd.vlm.hardware.devices import Quantization
from alignkd.vlm.weights.files import files_fingerprint, weight_files
from alignkd.vlm.weights.hub import resolve_checkpoint
from alignkd.vlm.weights.tensor_file import open_tensors

LM_HEAD_KEY = "lm_head.weight"
TEMPLATES: tuple[str, ...] = get_args(TemplateName)
DEFAULT_TEMPLATE = "v1"


class MobileVLMCheckpoint:
    """One checkpoint of a run; implements `Checkpoint`. Open it once and pass it on: opening a hub id asks the hub.

    Configuration, tokenizer, list of weight files and fingerprint are read when first used, then kept.

    Attributes:
        name: folder or hub id, as given.
        folder: local folder that holds the files.
        vision_config: folder with the vision tower's `config.json`, or None to follow `mm_vision_tower`.
    """

    def __init__(
        self,
        name: str | Path,
        folder: Path,
        *,
        vision_config: Path | None,
        has_weights: bool,
        raw: Mapping[str, Any] | None = None,
    ) -> None:
        """`raw`: content of `config.json`, if it has been read."""
        self.name, self.folder, self.vision_config = name, folder, vision_config
        self._has_weights, self._raw = has_weights, raw

    @classmethod
    def open(cls, name: str | Path, *, vision_config: Path | None = None, weights: bool = True) -> Self:
        """Find a checkpoint; a hub id is fetched, or taken from the hub's cache.

        Args:
            name: folder in the official layout, or hub id (`org/name`, `org/name@revision`).
            vision_config: folder with the vision tower's `config.json`, overriding `mm_vision_tower`.
            weights: False fetches configuration and tokenizer; a hub id's weights are fetched when first used, by one
                more request.

        Raises:
            InputError: neither a folder nor a model of the hub, or incomplete.
        """
        folder = resolve_checkpoint(name, weights=weights)
        return cls(name, folder, vision_config=vision_config, has_weights=weights)

    @cached_property
    def config(self) -> VLMConfig:
        """Shapes and settings of the model.

        Raises:
            InputError: `config.json` is unusable, or the vision tower's configuration cannot be found.
        """
        if self._raw is None:
            return load_config(self.folder, vision_config=self.vision_config)
        return parse_config(dict(self._raw), path=self.folder / "config.json", vision_config=self.vision_config)

    def size(self) -> ModelSize:
        """Shapes, parameter counts and weight bytes; needs no weights."""
        return model_size(str(self.name), self.config)

    @cached_property
    def tokenizer(self) -> LegacyLlamaTokenizer:
        """The tokenizer.

        Raises:
            InputError: it is unusable, or has more pieces than the model has embeddings.
        """
        tokenizer = LegacyLlamaTokenizer(self.folder / "tokenizer.model")
        if len(tokenizer) > self.config.vocab_size:
            raise InputError(
                f"{self.folder}: tokenizer.model has {len(tokenizer)} pieces, config.json vocab_size "
                f"{self.config.vocab_size}; they are of different checkpoints"
            )
        return tokenizer

    @cached_property
    def sources(self) -> tuple[WeightSource, ...]:
        """The weight files, and those of the vision tower where the checkpoint has none itself.

        Raises:
            InputError: no weights.
        """
        folder = self.folder if self._has_weights else resolve_checkpoint(self.name)
        return tuple(weight_sources(folder))

    @cached_property
    def fingerprint(self) -> str:
        """sha256 over config and weight files, in name order, a vision tower from elsewhere included; 64 hex digits.

        Every byte is read, tens of gigabytes for a large model.
        """
        return files_fingerprint([self.folder / "config.json", *(source.file for source in self.sources)])

    @property
    def family(self) -> str:
        """Name of the family in stores and messages."""
        return "mobilevlm"

    @property
    def settings_fingerprint(self) -> dict[str, str]:
        """The settings of the vision tower, whose configuration may lie elsewhere."""
        return {"vision_config": settings_fingerprint(self.config)}

    def preparation(self, template: str | None = None, *, max_tokens: int | None = None) -> MobileVLMPreparation:
        """Tokenizer, template and image processor; needs no weights.

        Args:
            template: `v1` or `plain`; None: `v1`.
            max_tokens: maximum number of embedded tokens of a sample, or None.

        Raises:
            InputError: unusable configuration or tokenizer, or no such template.
        """
        if template is not None and template not in TEMPLATES:
            raise InputError(
                f"{self.name}: template {template!r}, but a MobileVLM checkpoint takes {' or '.join(TEMPLATES)}; "
                "set data.template to one of them, or leave it out"
            )
        config = self.config
        processor = ImageProcessor.from_preprocessor_config(
            config.preprocessor, int(config.vision.image_size), pad_to_square=config.pad_to_square
        )
        return MobileVLMPreparation(
            tokenizer=self.tokenizer,
            template=cast(TemplateName, template or DEFAULT_TEMPLATE),
            image_processor=processor,
            vision_tokens=config.vision_tokens,
            max_tokens=max_tokens,
        )

    def load_model(
        self,
        *,
        dtype: torch.dtype = torch.float32,
        device: str | torch.device = "cpu",
        quantization: Quantization = "none",
    ) -> MobileVLM:
        """The model in evaluation mode.

        Args:
            dtype: dtype of weights and arithmetic; with `quantization`, of activations and of the layers that are not
                quantised.
            quantization: `int8` or `nf4` quantise the decoder, see `model/quantization.py`.

        Raises:
            InputError: keys that are unknown, missing or misshapen (all listed), no such device, not enough memory on
                it, weights that are not finite, or no bitsandbytes.
        """
        return build_model(
            self.folder, self.config, self.sources, dtype=dtype, device=device, quantization=quantization
        )

    def attachments(self) -> dict[str, bytes]:
        """The sentencepiece model."""
        file = self.tokenizer.model_file
        return {file.name: file.read_bytes()}

    def lm_head(self, dtype: torch.dtype) -> Head:
        """`lm_head`, a matrix [V, D], read from the weight files; other tensors are not read.

        Raises:
            InputError: the checkpoint has none.
        """
        for source in self.sources:
            if LM_HEAD_KEY in source.shapes():
                weight_VD = next(tensor for key, tensor in source.tensors() if key == LM_HEAD_KEY).to(dtype)
                return Head(weight_VD=weight_VD)
        raise InputError(
            f"{self.folder}: no {LM_HEAD_KEY} in it, which logits.kind hidden stores; give a complete checkpoint"
        )

    def save(self, model: VisionLanguageModel, folder: Path) -> None:
        """Write `model` in the official layout, see `save_model`.

        Raises:
            OSError: a file cannot be written.
        """
        assert isinstance(model, MobileVLM)
        save_model(model, folder, tokenizer_from=self.folder)

    def is_complete(self, folder: Path) -> bool:
        """Whether `folder` holds everything that `save` writes; of weight files only the headers are read."""
        try:
            for file in weight_files(folder):
                if file.suffix == ".safetensors":
                    with open_tensors(file):
                        pass
        except (InputError, OSError, SafetensorError):
            return False
        return all((folder / name).is_file() for name in ("config.json", "tokenizer.model"))


def load_model(
    checkpoint: str | Path,
    *,
    vision_config: Path | None = None,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
    quantization: Quantization = "none",
) -> MobileVLM:
    """`MobileVLMCheckpoint.load_model`, for callers that need only the model."""
    opened = MobileVLMCheckpoint.open(checkpoint, vision_config=vision_config)
    return opened.load_model(dtype=dtype, device=device, quantization=quantization)


def load_preparation(
    checkpoint: str | Path,
    *,
    template: str | None = None,
    vision_config: Path | None = None,
    max_tokens: int | None = None,
) -> MobileVLMPreparation:
    """`MobileVLMCheckpoint.example_builder`, for callers that need only the tokenizer and image processor."""
    opened = MobileVLMCheckpoint.open(checkpoint, vision_config=vision_config, weights=False)
    return opened.preparation(template, max_tokens=max_tokens)
