"""The interface of a family of models: dump, training, stem, planner and generation know nothing else of a model.

A family is a folder next to this file with an `opener.py`, and its name in `open.py`.

Shapes: B samples or prompts, L positions, I images, P vision tokens of all images, D hidden size, N supervised
positions, V columns of the head.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol, Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from alignkd.vlm.attention.layer import AttentionLayer
from alignkd.vlm.families.sizes import ModelSize
from alignkd.vlm.hardware.devices import Quantization
from alignkd.vlm.inputs.batch import ImageTensors, SequenceBatch
from alignkd.vlm.inputs.examples import Example, Preparation
from alignkd.vlm.kernels.choice import Kernels, use_kernels
from alignkd.vlm.kernels.layer_run import compute_again
from alignkd.vlm.settings import ProcessorKind

# Yields logits and takes tokens, see `VisionLanguageModel.decoding`.
Decoding = Generator[Tensor, Tensor, None]


class ModelConfig(Protocol):
    """Sizes of a model."""

    @property
    def num_heads(self) -> int:
        """H, query heads of the first layer that has attention."""

    @property
    def hidden_size(self) -> int:
        """D, hidden size of the decoder, and width of the vision embeddings."""

    @property
    def vocab_size(self) -> int:
        """V, columns of the head; may exceed the entries of the tokenizer."""

    @property
    def pads_vocabulary(self) -> bool:
        """Whether the head's columns after the tokenizer's entries are padding, which no distribution counts."""

    @property
    def vision_tokens(self) -> int | None:
        """Tokens per image; None if they depend on the image."""

    @property
    def num_layers(self) -> int:
        """Layers of the decoder."""

    @property
    def attention_layers(self) -> tuple[int, ...]:
        """Numbers of the decoder layers that have attention, from 0; not all layers of a hybrid model have."""

    @property
    def attention_layer(self) -> int:
        """The first of `attention_layers`."""

    @property
    def max_positions(self) -> int:
        """Maximum sequence length."""


@dataclass(frozen=True, kw_only=True)
class Head:
    """The output head: logits are `scale * (states @ weight^T + bias)`, then softly capped.

    Attributes:
        weight_VD: the matrix, shared with the model.
        bias_V: added to the product; None: nothing.
        scale: factor of the logits.
        softcap: logits x become `softcap * tanh(x / softcap)`; None: unchanged.
    """

    weight_VD: Tensor
    bias_V: Tensor | None = None
    scale: float = 1.0
    softcap: float | None = None

    def __call__(self, states_ND: Tensor) -> Tensor:
        """Logits [N, V] of last hidden states, in the dtype of the states."""
        return self.finish(functional.linear(states_ND, self.weight_VD, self.bias_V))

    def finish(self, products_NV: Tensor) -> Tensor:
        """Logits from the products of states and matrix."""
        if self.scale != 1.0:
            products_NV = products_NV * self.scale
        if self.softcap is None:
            return products_NV
        return self.softcap * torch.tanh(products_NV / self.softcap)


@dataclass(frozen=True, kw_only=True)
class Vision:
    """Encoded images.

    Attributes:
        embeddings_PD: what the decoder receives at the vision positions, image by image.
        tokens_of_image: vision tokens of each image, plain integers.
        per_token: further tensors that the decoder needs, first axis P (deepstack features of a layer, for example).
        per_image: further tensors that the decoder needs, first axis I (sizes of grids, for example).
        features: the output of the frozen tower before the projector, for the stem; None if it was not asked for, or
            the family has no border between tower and projector.
    """

    embeddings_PD: Tensor
    tokens_of_image: tuple[int, ...]
    per_token: Mapping[str, Tensor] = field(default_factory=dict)
    per_image: Mapping[str, Tensor] = field(default_factory=dict)
    features: object | None = None

    def split(self) -> list[Self]:
        """Each image alone, without `features`."""
        sizes, count = list(self.tokens_of_image), len(self.tokens_of_image)
        embeddings = self.embeddings_PD.split(sizes)
        tokens = {name: values.split(sizes) for name, values in self.per_token.items()}
        images = {name: values.split(1) for name, values in self.per_image.items()}
        return [
            replace(
                self,
                embeddings_PD=embeddings[n],
                tokens_of_image=(sizes[n],),
                per_token={name: parts[n] for name, parts in tokens.items()},
                per_image={name: parts[n] for name, parts in images.items()},
                features=None,
            )
            for n in range(count)
        ]

    @classmethod
    def join(cls, images: Sequence["Vision"]) -> "Vision":
        """Several images, in this order; at least one."""
        first = images[0]
        return cls(
            embeddings_PD=torch.cat([image.embeddings_PD for image in images]),
            tokens_of_image=tuple(count for image in images for count in image.tokens_of_image),
            per_token={name: torch.cat([image.per_token[name] for image in images]) for name in first.per_token},
            per_image={name: torch.cat([image.per_image[name] for image in images]) for name in first.per_image},
        )


class VisionLanguageModel(nn.Module, ABC):
    """One model with its weights: vision tower -> projector -> decoder -> head.

    Attributes:
        findings: results of the self-checks at loading, each with a text of one line; empty for a family without.
    """

    findings: Sequence[object] = ()

    @property
    @abstractmethod
    def config(self) -> ModelConfig:
        """Sizes of the model."""

    @property
    @abstractmethod
    def device(self) -> torch.device:
        """Device of the weights."""

    @property
    @abstractmethod
    def dtype(self) -> torch.dtype:
        """Dtype of the decoder's activations."""

    @abstractmethod
    def freeze_vision_tower(self) -> None:
        """Exclude the tower, but not the projector, from training."""

    @abstractmethod
    def encode_images(
        self, images: Sequence[ImageTensors], samples: Sequence[int] | None = None, *, features: bool = False
    ) -> Vision:
        """Vision embeddings of images, at least one, with gradient to the projector.

        Args:
            images: the tensors of each image, on the model's device, as `Preparation.build` made them.
            samples: the sample of each image, ascending, for families in which an image's tokens depend on how many
                images its sample has; None: each image is the only one of its sample.
            features: also return the tower's output.
        """

    @abstractmethod
    def no_image(self) -> Vision:
        """The embeddings of an image of zeros: reaches every trained parameter that images reach.

        A rank whose batch has no image adds `0 *` these to its loss (`sum_of_zeros`), so that ZeRO-2 finds the same
        gradients on every rank.
        """

    @abstractmethod
    def hidden_states(self, batch: SequenceBatch, vision: Vision | None) -> Tensor:
        """Last hidden states [B, L, D] after the final norm.

        Args:
            batch: ids, types and lengths; its `images` are not used.
            vision: all images of the batch, in its order; None if it has none.
        """

    @abstractmethod
    def watched_layers(self, layers: Sequence[int]) -> AbstractContextManager[Mapping[int, AttentionLayer]]:
        """Record queries and keys of decoder layers, with gradient, when `hidden_states` runs inside.

        Args:
            layers: numbers of `ModelConfig.attention_layers`; the keys of the result.
        """

    @contextmanager
    def watched_first_layer(self) -> Iterator[AttentionLayer]:
        """`watched_layers` of the first layer that has attention."""
        number = self.config.attention_layer
        with self.watched_layers([number]) as layers:
            yield layers[number]

    @property
    @abstractmethod
    def head(self) -> Head:
        """The output head."""

    @property
    @abstractmethod
    def projector_prefixes(self) -> tuple[str, ...]:
        """Prefixes of the names of the projector's parameters, for a learning rate of their own."""

    @property
    def decoder(self) -> nn.Module | None:
        """The language model without its head if it is one of transformers that takes `inputs_embeds`, else None."""
        return None

    @property
    @abstractmethod
    def decoder_layers(self) -> Sequence[nn.Module]:
        """The decoder's layers in order."""

    @property
    def library_prefix(self) -> str:
        """What the names of parameters start with here and not in the model that other libraries load."""
        return ""

    def checkpoint_layers(self, *, preserve_rng_state: bool = False) -> None:
        """Keep only the input of each decoder layer for the backward pass, which computes the layer again.

        Args:
            preserve_rng_state: draw the same random numbers again; only needed where the layers draw any.
        """
        compute_again(self.decoder_layers, preserve_rng_state=preserve_rng_state)

    def use_kernels(self, kernels: Kernels) -> str:
        """Compute the decoder's layers with other kernels from here on; the model must be on its device.

        Returns:
            What was done, a line for the user.

        Raises:
            InputError: the kernels cannot run here, or not for this decoder.
        """
        return use_kernels(kernels, self.decoder, self.decoder_layers, self.device)

    @abstractmethod
    def decoding(self, prompts: Sequence[Example], vision: Vision | None = None) -> Decoding:
        """Continue prompts token by token, with a KV cache; `vlm/families/generation.py` chooses the tokens.

        Endless. It yields the logits [B, V] of the next token of each prompt, in the dtype of the head, and takes the
        chosen tokens by `send`, int64 [B] on the model's device. Prompts may differ in length: what a prompt gets does
        not depend on the others, but for rounding.

        Args:
            vision: the images of all prompts, in their order; None: those that the prompts hold are encoded.
        """


class Checkpoint(Protocol):
    """One checkpoint of a run, opened once; weights are read by `load_model` only."""

    name: str | Path
    folder: Path

    @property
    def family(self) -> str:
        """Name of the family in stores and messages: `mobilevlm` or `huggingface`."""

    @property
    def config(self) -> ModelConfig:
        """Sizes of the model.

        Raises:
            InputError: `config.json` is unusable.
        """

    def size(self) -> ModelSize:
        """Shapes, parameter counts and weight bytes; needs no weights.

        Raises:
            InputError: as `config`.
        """

    @property
    def fingerprint(self) -> str:
        """sha256 over configuration and weight files; 64 hex digits. Every byte is read."""

    @property
    def settings_fingerprint(self) -> dict[str, str]:
        """Further settings that decide the teacher's outputs and are not in the checkpoint's own files, by name."""

    def preparation(self, template: str | None = None, *, max_tokens: int | None = None) -> Preparation:
        """Tokenizer, template and image processor; needs no weights.

        Args:
            template: name of a prompt template; None: that of the checkpoint, or the family's default.
            max_tokens: maximum number of embedded tokens of a sample, or None.

        Raises:
            InputError: unusable tokenizer or processor, or no such template in this family.
        """

    def load_model(
        self,
        *,
        dtype: torch.dtype = torch.float32,
        device: str | torch.device = "cpu",
        quantization: Quantization = "none",
    ) -> VisionLanguageModel:
        """The model in evaluation mode, after the family's self-checks.

        Raises:
            InputError: unusable weights, no such device, not enough memory, or a self-check that failed.
        """

    def attachments(self) -> dict[str, bytes]:
        """Name -> content of the files with which `open_pieces` shows a store's tokens."""

    def lm_head(self, dtype: torch.dtype) -> Head:
        """The output head, its tensors in `dtype`, read from the weight files without loading the model.

        Raises:
            InputError: a tensor is missing, or a file cannot be read.
        """

    def save(self, model: VisionLanguageModel, folder: Path) -> None:
        """Write a trained model in the layout of this checkpoint, with its tokenizer and processor files.

        Raises:
            OSError: a file cannot be written.
        """

    def is_complete(self, folder: Path) -> bool:
        """Whether `folder` holds everything that `save` writes, in files that can be opened."""


@dataclass(frozen=True, kw_only=True)
class CheckpointFolder:
    """What `open_checkpoint` found, for the family that the checkpoint belongs to.

    Attributes:
        name: folder or hub id, as given.
        folder: local folder with the files.
        raw: content of its `config.json`.
        has_weights: whether the folder holds the weights; False: a hub id's weights are fetched when first used.
        vision_config: folder with the vision tower's `config.json`, for checkpoints that only name their tower.
        processor: which image processor; `auto` is what transformers picks, `pil` its variant for Pillow.
    """

    name: str | Path
    folder: Path
    raw: Mapping[str, Any]
    has_weights: bool
    vision_config: Path | None = None
    processor: ProcessorKind = "auto"


# Opens a checkpoint of one family; None if `config.json` is not of that family.
Opener = Callable[[CheckpointFolder], Checkpoint | None]


def sum_of_zeros(vision: Vision) -> Tensor:
    """0 times every value of `vision`: a scalar through which all its parameters get a gradient of zeros."""
    parts = [vision.embeddings_PD, *vision.per_token.values()]
    return torch.stack([0.0 * part.float().sum() for part in parts]).sum()
