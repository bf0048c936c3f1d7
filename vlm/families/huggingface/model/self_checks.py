"""Compares a loaded model with itself in ways that must agree, and refuses it where they do not.

What is generic here rests on conventions of transformers: encoded images take the place of pixels, the recorded queries
and keys give the attention, the head gives the logits, padding changes nothing. A model that departs from one of them
would give plausible but wrong targets.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import torch
from torch import Tensor

from alignkd.vlm.attention.attention_rows import attention_weights
from alignkd.vlm.attention.layer_choice import shown_layers
from alignkd.vlm.errors import InputError, one_line
from alignkd.vlm.families.family import Vision
from alignkd.vlm.families.huggingface.model.images import IMAGES_PER_SAMPLE, UnjoinableError
from alignkd.vlm.families.huggingface.model.parts import attentions_of
from alignkd.vlm.families.huggingface.model.recorder import RecordedLayer, recorded_layers
from alignkd.vlm.inputs.batch import ImageTensors, SequenceBatch, collate_sequences
from alignkd.vlm.inputs.examples import Example

if TYPE_CHECKING:
    from alignkd.vlm.families.huggingface.model.model import HuggingFaceModel

# Relative differences up to these are rounding. The first is for one computation done in two ways, the second for the
# last hidden states of two passes in batches of other shapes, in which every layer rounds differently.
LIMITS = {
    torch.float64: (1e-6, 1e-5),
    torch.float32: (1e-3, 1e-3),
    torch.bfloat16: (0.05, 0.25),
    torch.float16: (0.02, 0.1),
}
# LLM.int8() finds outliers in the whole batch, so its rounding depends on the batch.
QUANTIZED_LIMIT = 0.5
MAX_ROWS, MAX_LOGITS = 64, 8


@dataclass(frozen=True, kw_only=True)
class Finding:
    """The result of one self-check.

    Attributes:
        name: what was compared.
        difference: the largest relative difference.
        limit: the largest that is rounding.
        note: what was decided by it, empty for nothing.
    """

    name: str
    difference: float
    limit: float
    note: str = ""

    def __str__(self) -> str:
        text = f"{self.name}: differs by {self.difference:.1e}, limit {self.limit:.0e}"
        return f"{text} ({self.note})" if self.note else text


@torch.no_grad()
def check_model(model: HuggingFaceModel, examples: Sequence[Example], *, where: Path, is_quantized: bool) -> None:
    """Run all self-checks, set `needs_mask`, `encoder.joined` and `findings` of the model.

    Args:
        examples: made by the checkpoint's own processor, of different lengths; the first has an image.
        where: the checkpoint, for messages.
        is_quantized: whether layers of the decoder are quantised.

    Raises:
        InputError: a comparison failed, or the model cannot run.
    """
    checks = _SelfChecks(model, examples, where, is_quantized)
    try:
        model.findings = checks.run()
    except (InputError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # a model that does not keep the conventions fails anywhere
        raise InputError(
            f"{where}: model_type {model.config.model_type!r} cannot be run as a family of models is run here "
            f"({type(error).__name__}: {one_line(error)[:200]}); use a model of another architecture"
        ) from error


class _SelfChecks:
    def __init__(self, model: HuggingFaceModel, examples: Sequence[Example], where: Path, is_quantized: bool) -> None:
        self._model, self._examples, self._where = model, examples, where
        self._same, self._passes = LIMITS[model.dtype]
        if is_quantized:
            self._passes = max(self._passes, QUANTIZED_LIMIT)

    def run(self) -> tuple[Finding, ...]:
        model = self._model
        model.needs_mask, model.encoder.joined = False, True
        found = [self._joined_images()]
        found += [self._pixels(example, number) for number, example in self._with_images()]
        found.append(self._attention())
        if len(model.config.attention_layers) > 1:
            found.append(self._further_attention())
        found.append(self._head())
        found.append(self._padding())
        return tuple(found)

    def _with_images(self) -> list[tuple[int, Example]]:
        """The first sample with an image; more of them where an image's tokens depend on their number."""
        numbered = [(number, example) for number, example in enumerate(self._examples) if example.images]
        depends = IMAGES_PER_SAMPLE in inspect.signature(self._model.model.base_model.get_image_features).parameters
        return numbered if depends else numbered[:1]

    def _joined_images(self) -> Finding:
        """Two images in one call against each alone; if they differ, images are encoded one by one."""
        model = self._model
        image = _on(model, self._batch(self._examples[:1])).images[0]
        model.encoder.joined = False
        alone = model.encode_images([image, _dimmed(image)])
        model.encoder.joined = True
        try:
            difference = _difference(alone, model.encode_images([image, _dimmed(image)]))
        except (UnjoinableError, RuntimeError) as error:
            if isinstance(error, torch.OutOfMemoryError):
                raise
            difference = float("inf")
        if not difference <= self._same:
            model.encoder.joined = False
        note = "" if model.encoder.joined else "images are encoded one by one"
        return Finding(name="images in one call or each alone", difference=difference, limit=self._same, note=note)

    def _pixels(self, example: Example, number: int) -> Finding:
        """The model's own pass from pixels against the pass with images that were encoded before."""
        model = self._model
        batch = self._batch([example])
        inputs = {**model.decoder_inputs(batch, None), **_pixel_arguments(model, batch)}
        model.forget_positions()
        own_BLD = model.model.base_model(**inputs, use_cache=False, return_dict=True).last_hidden_state
        difference = _relative(model.hidden_states(batch, _encoded(model, batch)), own_BLD)
        return self._passed(f"pixels or encoded images (sample {number})", difference, self._same)

    def _attention(self) -> Finding:
        """Softmax of the recorded rows, times values, against the attention function's own output."""
        model, batch = self._model, self._batch(self._examples[:1])

        def judge(layer: RecordedLayer, value_BKLd: Tensor, output_BLHd: Tensor) -> None:
            if layer.num_heads != model.config.num_heads:
                self._refuse(
                    f"the first attention layer has {layer.num_heads} heads, config.json {model.config.num_heads}"
                )
            if layer.has_mask_per_head:
                self._refuse("the first attention layer has a mask of its own for each head")
            found.append(_relative(*_both_outputs(layer, value_BKLd, output_BLHd)))

        found: list[float] = []
        with recorded_layers([model.first_attention], judge=judge):
            model.hidden_states(batch, _encoded(model, batch))
        return self._passed("recorded attention", found[0], self._same)

    def _further_attention(self) -> Finding:
        """The same of all other layers; those that differ are left in the model and refused when they are needed."""
        model, batch = self._model, self._batch(self._examples[:1])
        numbers = {id(model.attention(number)): number for number in model.config.attention_layers[1:]}
        found: dict[int, float] = {}

        def judge(layer: RecordedLayer, value_BKLd: Tensor, output_BLHd: Tensor) -> None:
            wrong = layer.has_mask_per_head
            outputs = None if wrong else _both_outputs(layer, value_BKLd, output_BLHd)
            found[numbers[id(layer.module)]] = float("inf") if outputs is None else _relative_to_own(*outputs)

        with recorded_layers([model.attention(number) for number in numbers.values()], judge=judge):
            model.hidden_states(batch, _encoded(model, batch))
        missing = dict.fromkeys(set(numbers.values()) - found.keys(), float("inf"))
        model.unusable_layers = {n: one for n, one in (found | missing).items() if not one <= self._same}
        usable = [one for number, one in found.items() if number not in model.unusable_layers]
        note = f"not usable: layers {shown_layers(sorted(model.unusable_layers))}" if model.unusable_layers else ""
        return Finding(
            name="recorded attention of the other layers",
            difference=max(usable, default=0),
            limit=self._same,
            note=note,
        )

    def _head(self) -> Finding:
        """The model's own logits against the head on its last hidden states."""
        model, batch = self._model, self._batch([_shortest(self._examples)])
        vision = _encoded(model, batch)
        keeps = "logits_to_keep" in inspect.signature(model.model.forward).parameters
        model.forget_positions()
        own = model.model(
            **model.decoder_inputs(batch, vision),
            **({"logits_to_keep": MAX_LOGITS} if keeps else {}),
            use_cache=False,
            return_dict=True,
        ).logits[0, -MAX_LOGITS:]
        logits = model.head(model.hidden_states(batch, vision)[0, -MAX_LOGITS:])
        return self._passed("logits of the head", _relative(logits, own), self._same)

    def _padding(self) -> Finding:
        """Each sample alone against all in a padded batch, without a mask, and with one if that is not enough."""
        model = self._model
        alone = [self._hidden(self._batch([example]))[0] for example in self._examples]
        batch = self._batch(self._examples)
        sees_padding = self._sees_padding(batch)
        difference = self._padded_difference(batch, alone)
        if sees_padding or not difference <= self._passes:
            model.needs_mask = True
            if self._sees_padding(batch):
                self._refuse("positions attend to padding although it is masked")
            difference = self._padded_difference(batch, alone)
        note = "batches need an attention mask" if model.needs_mask else "batches need no attention mask"
        return self._passed("alone or in a padded batch", difference, self._passes, note)

    def _sees_padding(self, batch: SequenceBatch) -> bool:
        """Whether a real position attends to a padding position in some layer; exact, whatever the dtype."""
        model = self._model
        with recorded_layers(attentions_of(model.model)) as layers:
            model.hidden_states(batch, _encoded(model, batch))
        return any(_attends_to_padding(layer, batch) for layer in layers if layer.query_BHLd is not None)

    def _padded_difference(self, batch: SequenceBatch, alone: Sequence[Tensor]) -> float:
        hidden_BLD = self._hidden(batch)
        return max(_relative(hidden_BLD[row, : len(own)], own) for row, own in enumerate(alone))

    def _hidden(self, batch: SequenceBatch) -> Tensor:
        return self._model.hidden_states(batch, _encoded(self._model, batch))

    def _batch(self, examples: Sequence[Example]) -> SequenceBatch:
        return _on(self._model, collate_sequences(examples))

    def _passed(self, name: str, difference: float, limit: float, note: str = "") -> Finding:
        finding = Finding(name=name, difference=difference, limit=limit, note=note)
        if not difference <= limit:  # NaN too
            self._refuse(str(finding))
        return finding

    def _refuse(self, reason: str) -> NoReturn:
        raise InputError(
            f"{self._where}: self-check of model_type {self._model.config.model_type!r} failed: {reason}; its targets "
            "would be wrong, so it is not used: take another model, or another version of transformers"
        )


def _on(model: HuggingFaceModel, batch: SequenceBatch) -> SequenceBatch:
    return batch.to(model.device)


def _encoded(model: HuggingFaceModel, batch: SequenceBatch) -> Vision | None:
    if not batch.images:
        return None
    return model.encode_images(batch.images, batch.image_samples_I.tolist())


def _pixel_arguments(model: HuggingFaceModel, batch: SequenceBatch) -> dict[str, Any]:
    """The image arguments of the model's own pass, of a batch of one sample."""
    names = inspect.signature(model.model.base_model.get_image_features).parameters
    found = {name for image in batch.images for name in image if name in names}
    dtype = model.tower_dtype
    joined = {name: torch.cat([image[name] for image in batch.images]) for name in found}
    joined = {name: values.to(dtype) if values.is_floating_point() else values for name, values in joined.items()}
    if IMAGES_PER_SAMPLE in names:
        joined[IMAGES_PER_SAMPLE] = torch.tensor([len(batch.images)])
    return joined


def _attends_to_padding(layer: RecordedLayer, batch: SequenceBatch) -> bool:
    if layer.is_causal:
        return False
    length = batch.input_ids_BL.shape[1]
    rows_L = torch.arange(length, device=batch.lengths_B.device)
    is_padding_BL = rows_L >= batch.lengths_B[:, None]
    for row, is_padding_L in enumerate(is_padding_BL):
        sample = torch.tensor([row], device=rows_L.device)
        visible_LL = layer.visible(rows_L[None], sample)[0]
        if bool((visible_LL[~is_padding_L][:, is_padding_L]).any()):
            return True
    return False


def _both_outputs(layer: RecordedLayer, value_BKLd: Tensor, output_BLHd: Tensor) -> tuple[Tensor, Tensor]:
    """Some rows [B, R, H, d] of a layer's output: rebuilt from its recorded queries and keys, and its own."""
    assert layer.query_BHLd is not None
    length = layer.query_BHLd.shape[2]
    device = layer.query_BHLd.device
    # the last rows, and rows of all parts of the sequence
    spread = torch.linspace(0, length - 1, min(MAX_ROWS, length), device=device).long()
    rows_R = torch.cat([spread, torch.arange(max(0, length - MAX_ROWS), length, device=device)])
    inputs = layer.row_inputs(rows_R[None])
    everything = torch.arange(length, device=device)[None]
    weights_BHRL, sum_BHR1 = attention_weights(inputs, everything)
    groups = layer.query_BHLd.shape[1] // value_BKLd.shape[1]
    value_BHLd = value_BKLd.repeat_interleave(groups, dim=1).to(weights_BHRL.dtype)
    rebuilt_BRHd = ((weights_BHRL / sum_BHR1) @ value_BHLd[:, :, : weights_BHRL.shape[-1]]).transpose(1, 2)
    return rebuilt_BRHd, output_BLHd[:, rows_R]


def _relative_to_own(first: Tensor, second: Tensor) -> float:
    """As `_relative`, each vector also relative to its own norm: deep layers have heads of very different norms."""
    first, second = first.double(), second.double()
    norms = second.norm(dim=-1)
    scale = norms + norms.mean().clamp_min(torch.finfo(torch.float64).tiny)
    return float(((first - second).norm(dim=-1) / scale).max())


def _shortest(examples: Sequence[Example]) -> Example:
    return min(examples, key=lambda example: example.positions.length)


def _dimmed(image: ImageTensors) -> dict[str, Tensor]:
    """Another image of the same shapes."""
    return {name: 0.5 * values if values.is_floating_point() else values for name, values in image.items()}


def _difference(first: Vision, second: Vision) -> float:
    """The largest difference of embeddings and of what else the decoder needs."""
    if first.tokens_of_image != second.tokens_of_image:
        return float("inf")
    pairs = [(first.embeddings_PD, second.embeddings_PD)]
    pairs += [(values, second.per_token[name]) for name, values in first.per_token.items()]
    return max(_relative(*pair) for pair in pairs)


def _relative(first: Tensor, second: Tensor) -> float:
    """The largest norm of a difference of vectors (last axis), relative to the norm of the second's mean vector."""
    first, second = first.double(), second.double()
    scale = second.norm(dim=-1).mean().clamp_min(torch.finfo(torch.float64).tiny)
    return float((first - second).norm(dim=-1).max() / scale)
