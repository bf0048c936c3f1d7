"""One forward pass of the teacher and its targets, encoded on the device and copied to the host.

Shapes: B samples, L positions, P vision tokens, Dt hidden size, N supervised positions.
"""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from alignkd.teacher_dump.preparation import Prepared
from alignkd.teacher_dump.settings.store import StoreConfig
from alignkd.teacher_dump.targets.attention import AttentionCapture, SampleAttention
from alignkd.teacher_dump.targets.counterfactual import CounterfactualPass, CounterfactualRows
from alignkd.teacher_dump.targets.host_copies import HostArrays, HostCopies, batch_to_device
from alignkd.teacher_dump.targets.logits.distribution import draws_of, keep_distribution
from alignkd.teacher_dump.targets.seen_images import ImageKey, SeenImage, SeenImages, image_keys
from alignkd.teacher_dump.targets.states import StateRows, StatesCapture
from alignkd.vlm.attention.layer import AttentionLayer
from alignkd.vlm.families.family import Vision, VisionLanguageModel
from alignkd.vlm.families.recorded_states import recorded_states
from alignkd.vlm.hardware.transfers import to_device
from alignkd.vlm.inputs.batch import collate_sequences


@dataclass(frozen=True, kw_only=True)
class LogitRows:
    """A sample's rows among those of its batch."""

    arrays: HostArrays
    rows: slice


@dataclass(frozen=True, kw_only=True)
class Captured:
    """The targets of one sample in parts of the store's codecs; None where the store keeps nothing.

    Attributes:
        attention, vision_top, attention_layers: see `SampleAttention`.
        vision: parts of [P, Dt] for each image.
        logits: see `distribution.keep_distribution`.
        states: see `StatesCapture`.
        counterfactual: see `CounterfactualPass`; None also for a sample without images.
    """

    attention: HostArrays | None
    vision_top: HostArrays | None
    attention_layers: Mapping[str, Sequence[HostArrays]]
    vision: tuple[HostArrays, ...]
    logits: LogitRows
    states: tuple[StateRows, ...] = ()
    counterfactual: CounterfactualRows | None = None

    def arrive(self) -> None:
        """Wait until everything is on the host, so that the device memory is freed."""
        of_layers = (arrays for parts in self.attention_layers.values() for arrays in parts)
        of_states = (rows.arrays for rows in self.states)
        for arrays in (self.attention, self.vision_top, *of_layers, *self.vision, self.logits.arrays, *of_states):
            if arrays is not None:
                arrays.wait()
        if self.counterfactual is not None:
            self.counterfactual.arrive()


class Capture:
    """Runs the teacher on batches and captures targets.

    Args:
        model: the teacher.
        config: section `store`.
        num_tokens: columns of the head that are tokens, if the others are padding; None: all columns.
        sequence_logprob: whether records hold the log-probability of their text.
    """

    def __init__(
        self,
        model: VisionLanguageModel,
        config: StoreConfig,
        *,
        num_tokens: int | None = None,
        sequence_logprob: bool = True,
    ) -> None:
        self.model, self.config, self._sequence_logprob = model, config, sequence_logprob
        self._codec, self._num_tokens = config.logits, num_tokens
        self._copies = HostCopies(model.device)
        self._attention_capture = AttentionCapture(model, config, self._copies)
        self._images = SeenImages(model, config.vision_all, self._copies)
        self._states = StatesCapture(config, self._copies)
        self._second = None
        if config.counterfactual is not None:
            self._second = CounterfactualPass(model, config.counterfactual, self._copies, num_tokens=num_tokens)

    def begin_window(self, samples: Iterable[Prepared]) -> None:
        """Drop cached images, and count the images of the window: those of several samples are computed once."""
        self._images.begin_window(samples)

    @torch.no_grad()
    def __call__(self, samples: Sequence[Prepared]) -> list[Captured]:
        """Run the teacher on `samples` as one batch and return the targets of each.

        Raises:
            torch.OutOfMemoryError: the batch does not fit the device.
        """
        second = self._second
        watched = sorted({*self._attention_capture.watched, *(() if second is None else second.watched)})
        with (
            self.model.watched_layers(watched) if watched else nullcontext({}) as recorded,
            recorded_states(self.model, self._states.layers) as after_layers,
        ):
            images, hidden_BLD = self._forward(samples)
        layers = dict(recorded)
        del recorded  # so that the queries and keys of each layer are freed once its attention is done
        evidence = {} if second is None else second.evidence(samples, layers)
        attention = self._attention(samples, layers, images)
        layers.clear()
        logits = self._logits(samples, hidden_BLD)
        states = self._states(samples, hidden_BLD, images, after_layers)
        after_layers.clear()
        compared = self._counterfactual(samples, images, hidden_BLD, evidence)
        self._images.end_batch(samples)
        return [
            Captured(
                attention=found.attention,
                vision_top=found.vision_top,
                attention_layers=found.layers,
                vision=tuple(parts for key in image_keys(sample) if (parts := images[key].parts) is not None),
                logits=logits[row],
                states=states[row],
                counterfactual=compared.get(row),
            )
            for row, sample in enumerate(samples)
            for found in (attention.get(row, SampleAttention()),)
        ]

    @torch.no_grad()
    def supervised_states(self, samples: Sequence[Prepared]) -> list[Tensor]:
        """The last hidden states [N, Dt] of each sample at its supervised positions, from one forward pass."""
        _, hidden_BLD = self._forward(samples)
        counts = [len(sample.example.positions.next_labels) for sample in samples]
        return list(self._supervised(samples, hidden_BLD).split(counts))

    def _forward(self, samples: Sequence[Prepared]) -> tuple[dict[ImageKey, SeenImage], Tensor]:
        """The batch's images, and last hidden states [B, L, Dt]."""
        batch = batch_to_device(collate_sequences([sample.example for sample in samples]), self.model.device)
        images = self._images.see(samples)
        vision = [images[key].vision for sample in samples for key in image_keys(sample)]
        return images, self.model.hidden_states(batch, Vision.join(vision) if vision else None)

    def _supervised(self, samples: Sequence[Prepared], hidden_BLD: Tensor) -> Tensor:
        """Hidden states [N, Dt] at all supervised positions, whose indices come from the host to avoid a sync."""
        places = [
            sample.example.positions.supervised_positions.astype(np.int64) + row * hidden_BLD.shape[1]
            for row, sample in enumerate(samples)
        ]
        return hidden_BLD.flatten(0, 1)[self._indices(np.concatenate(places))]

    def _logits(self, samples: Sequence[Prepared], hidden_BLD: Tensor) -> list[LogitRows]:
        labels = [sample.example.positions.next_labels for sample in samples]
        counts = [len(own) for own in labels]
        numbers = [sample.sample.index for sample in samples]
        drawn = draws_of(self._codec, self.config.seed, list(zip(numbers, counts, strict=True)))
        kept = keep_distribution(
            self.model.head,
            self._supervised(samples, hidden_BLD),
            self._indices(np.concatenate(labels)),
            None if drawn is None else to_device(torch.from_numpy(drawn), self.model.device),
            self._codec,
            num_tokens=self._num_tokens,
            label_logprobs=self._sequence_logprob,
        )
        arrays, ends = self._copies.start(kept), np.cumsum(counts).tolist()
        return [LogitRows(arrays=arrays, rows=slice(end - count, end)) for end, count in zip(ends, counts, strict=True)]

    def _counterfactual(
        self,
        samples: Sequence[Prepared],
        images: dict[ImageKey, SeenImage],
        hidden_BLD: Tensor,
        evidence: Mapping[int, Tensor | None],
    ) -> dict[int, CounterfactualRows]:
        """The second pass over the samples that have images, by their rows in the batch."""
        if self._second is None or not evidence:
            return {}
        own, masks = [samples[row] for row in evidence], list(evidence.values())
        visions = [Vision.join([images[key].vision for key in image_keys(sample)]) for sample in own]
        first = self._supervised(samples, hidden_BLD).split([_num_labels(sample) for sample in samples])
        second_ND = self._supervised(own, self._second.states(own, visions, masks))
        found = self._second.rows(own, (torch.cat([first[row] for row in evidence]), second_ND), masks)
        return dict(zip(evidence, found, strict=True))

    def _attention(
        self,
        samples: Sequence[Prepared],
        layers: dict[int, AttentionLayer],
        images: dict[ImageKey, SeenImage],
    ) -> dict[int, SampleAttention]:
        """Attention and `vision_top` of the samples that have an image, by their rows in the batch."""
        with_image = {row: sample for row, sample in enumerate(samples) if sample.image_hashes}
        return self._attention_capture(
            {row: sample.example.positions for row, sample in with_image.items()},
            layers,
            {row: [images[key].vision.embeddings_PD for key in image_keys(one)] for row, one in with_image.items()},
        )

    def _indices(self, values: NDArray[Any]) -> Tensor:
        return to_device(torch.from_numpy(values.astype(np.int64)), self.model.device)


def _num_labels(sample: Prepared) -> int:
    return len(sample.example.positions.next_labels)
