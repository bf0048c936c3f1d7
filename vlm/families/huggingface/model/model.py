"""Any vision-language model of transformers as a `VisionLanguageModel`.

The model always gets ids, never embeddings: positions, masks and per-layer embeddings depend on the ids and on type
ids. Images are encoded before and given to it as `mm_encoder_outputs`, which takes the place of the pixels.

Shapes: B samples, L positions, I images, P vision tokens of all images, D hidden size.
"""

import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from alignkd.vlm.attention.layer import AttentionLayer
from alignkd.vlm.errors import InputError
from alignkd.vlm.families.family import Decoding, Head, Vision, VisionLanguageModel
from alignkd.vlm.families.huggingface.model.config import HuggingFaceConfig
from alignkd.vlm.families.huggingface.model.generation import decoding
from alignkd.vlm.families.huggingface.model.head import head_of
from alignkd.vlm.families.huggingface.model.images import ImageEncoder
from alignkd.vlm.families.huggingface.model.parts import (
    attention_of,
    decoder_of,
    has_projector_inside,
    layers_of,
    projector_names,
    tower_of,
    tower_parameters,
    untrained_modules,
)
from alignkd.vlm.families.huggingface.model.recorder import recorded_layers
from alignkd.vlm.families.huggingface.model.tower_outputs import TowerFeatures, feature_layers, recorded_outputs
from alignkd.vlm.inputs.batch import ImageTensors, SequenceBatch
from alignkd.vlm.inputs.examples import Example
from alignkd.vlm.kernels.layer_run import watched

_TYPES_SUFFIX = "token_type_ids"
_PICTURE = "picture_"


class HuggingFaceModel(VisionLanguageModel):
    """A model of transformers, which is its sub-module `model`.

    Args:
        model: of a class of `AutoModelForImageTextToText`.
        config: its sizes.
        picture: the tensors of any image, for `no_image`.

    Attributes:
        model: the model of transformers.
        encoder: its image encoder.
        needs_mask: whether a padded batch needs an attention mask; without one SDPA has a faster path. Set by the
            self-checks.
        findings: results of the self-checks at loading.
        unusable_layers: numbers of attention layers whose recorded attention is not that of the layer, with the
            difference that a self-check found.
    """

    def __init__(self, model: Any, config: HuggingFaceConfig, picture: ImageTensors) -> None:
        super().__init__()
        self.model = model
        self._config = config
        self.encoder = ImageEncoder(model.base_model)
        self.needs_mask = True
        self.findings: tuple[Any, ...] = ()
        self.unusable_layers: dict[int, float] = {}
        # Not zeros, which Idefics3 takes for padding between images; buffers, which move to a device with the model.
        self._picture = tuple(picture)
        for name, values in picture.items():
            self.register_buffer(_PICTURE + name, values, persistent=False)
        parameters = inspect.signature(model.base_model.forward).parameters
        self._types = tuple(name for name in parameters if name.endswith(_TYPES_SUFFIX))

    @property
    def config(self) -> HuggingFaceConfig:
        """Sizes of the model."""
        return self._config

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return self.head.weight_VD.device

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the decoder's activations."""
        return self.head.weight_VD.dtype

    def freeze_vision_tower(self) -> None:
        """Exclude the tower, and what images and text do not reach, from training.

        Raises:
            InputError: the model has no tower that can be told from the rest.
        """
        if tower_of(self.model) is None:
            raise InputError(
                f"model_type {self._config.model_type!r} has no vision tower that can be told from its projector; it "
                "can be a teacher, not a student"
            )
        for parameter in tower_parameters(self.model):
            parameter.requires_grad_(False)
        for module in untrained_modules(self.model):
            module.requires_grad_(False)

    def encode_images(
        self, images: Sequence[ImageTensors], samples: Sequence[int] | None = None, *, features: bool = False
    ) -> Vision:
        """Vision embeddings; see `VisionLanguageModel.encode_images`. `features` are `TowerFeatures`."""
        tower = tower_of(self.model) if features else None
        if tower is None or has_projector_inside(tower):
            return self.encoder.encode(images, samples, self.tower_dtype)
        with recorded_outputs(tower, feature_layers(self._config.raw)) as outputs:
            vision = self.encoder.encode(images, samples, self.tower_dtype)
        found = TowerFeatures(images=images, samples=samples, joined=self.encoder.joined, outputs=tuple(outputs))
        return replace(vision, features=found)

    @property
    def tower_dtype(self) -> torch.dtype:
        """Dtype in which pixels are given to the vision tower."""
        tower = tower_of(self.model)
        return self.dtype if tower is None else next(tower.parameters()).dtype

    def no_image(self) -> Vision:
        """The embeddings of a fixed picture; see `VisionLanguageModel.no_image`."""
        return self.encode_images([{name: self.get_buffer(_PICTURE + name) for name in self._picture}])

    def hidden_states(self, batch: SequenceBatch, vision: Vision | None) -> Tensor:
        """Last hidden states [B, L, D]; see `VisionLanguageModel.hidden_states`."""
        self.forget_positions()
        output = self.model.base_model(**self.decoder_inputs(batch, vision), use_cache=False, return_dict=True)
        hidden_BLD: Tensor = output.last_hidden_state
        return hidden_BLD

    def decoder_inputs(self, batch: SequenceBatch, vision: Vision | None) -> dict[str, Any]:
        """Arguments of the model for a batch whose images are encoded.

        Raises:
            InputError: the batch lacks type ids that the model takes; it would compute wrong masks or positions.
        """
        if missing := [name for name in self._types if name not in batch.types]:
            raise InputError(
                f"model_type {self._config.model_type!r} needs {', '.join(missing)}, which the processor did not make; "
                "use the processor of the model's own checkpoint"
            )
        inputs: dict[str, Any] = {"input_ids": batch.input_ids_BL}
        inputs |= {name: batch.types[name] for name in self._types}
        if self.needs_mask:
            inputs["attention_mask"] = batch.attention_mask_BL
        if vision is not None:
            inputs |= {"mm_encoder_outputs": {"image": self.encoder.output(vision)}, **vision.per_image}
        return inputs

    def forget_positions(self) -> None:
        """Remove what an earlier pass left in the model for generation; it would shift the positions of this one."""
        if getattr(self.model.base_model, "rope_deltas", None) is not None:
            self.model.base_model.rope_deltas = None

    @contextmanager
    def watched_layers(self, layers: Sequence[int]) -> Iterator[Mapping[int, AttentionLayer]]:
        """Record attention layers; see `VisionLanguageModel.watched_layers`.

        Raises:
            InputError: the attention of a layer cannot be recorded.
        """
        for number in layers:
            if number in self.unusable_layers:
                raise InputError(
                    f"model_type {self._config.model_type!r}: attention recorded in decoder layer {number} differs "
                    f"from the layer's own by {self.unusable_layers[number]:.1e}; leave the layer out"
                )
        attentions = [self.attention(number) for number in layers]
        with watched([self.decoder_layers[number] for number in layers]), recorded_layers(attentions) as recorded:
            yield dict(zip(layers, recorded, strict=True))

    def attention(self, number: int) -> nn.Module:
        """The attention module of a decoder layer that has one."""
        attention = attention_of(layers_of(self.model)[number])
        assert attention is not None, f"layer {number} has no attention"
        return attention

    @property
    def first_attention(self) -> nn.Module:
        """The attention module of the first decoder layer that has one."""
        return self.attention(self._config.attention_layer)

    @property
    def head(self) -> Head:
        """The output head."""
        return head_of(self.model)

    @property
    def projector_prefixes(self) -> tuple[str, ...]:
        """Prefixes of the names of the projector's parameters."""
        return tuple(f"model.{name}" for name in projector_names(self.model))

    @property
    def library_prefix(self) -> str:
        """The model of transformers is the sub-module `model`."""
        return "model."

    @property
    def decoder(self) -> nn.Module:
        """The language model without its head."""
        return decoder_of(self.model)

    @property
    def decoder_layers(self) -> Sequence[nn.Module]:
        """The decoder's layers in order."""
        return layers_of(self.model)

    def decoding(self, prompts: Sequence[Example], vision: Vision | None = None) -> Decoding:
        """Logits of next tokens for chosen ones; see `VisionLanguageModel.decoding`."""
        return decoding(self, prompts, vision)


def image_tensors(example: Example, device: torch.device) -> list[Mapping[str, Tensor]]:
    """The tensors of an example's images."""
    return [{name: torch.from_numpy(values).to(device) for name, values in image.items()} for image in example.images]
