"""One forward pass of the teacher and its targets, encoded on the device and copied to the host.

Shapes: B samples, L positions, k images of a sample, R attention rows, C attention columns, P vision tokens, Ht heads,
Dt hidden size, N supervised positions, K selected vision tokens.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from alignkd.storage.codecs.settings import FROM_ALL, NOT_STORED
from alignkd.teacher_dump.preparation import Prepared
from alignkd.teacher_dump.store_config import StoreConfig
from alignkd.teacher_dump.targets.counterfactual import CounterfactualPass, CounterfactualRows
from alignkd.teacher_dump.targets.device_codecs import encode
from alignkd.teacher_dump.targets.distribution import draws_of, keep_distribution
from alignkd.teacher_dump.targets.host_copies import HostArrays, HostCopies, batch_to_device, to_device
from alignkd.teacher_dump.targets.seen_images import ImageKey, SeenImage, SeenImages, image_keys
from alignkd.vlm.attention.focus import vision_top_index
from alignkd.vlm.attention.layer import AttentionLayer
from alignkd.vlm.families.family import Vision, VisionLanguageModel
from alignkd.vlm.inputs.batch import collate_sequences, pad_positions
from alignkd.vlm.inputs.position_map import AttentionPairs, PositionMap

# bytes of float32 [B, Ht, r, L] for r rows at a time; on a CPU as much as stays in the cache
ATTENTION_BYTES = 256 << 20
ATTENTION_BYTES_CPU = 8 << 20
# bytes of float32 [B, Ht, R, C], the attention of as many samples as are encoded at a time; at least one sample
ENCODED_BYTES = 512 << 20
VISION_TOP_INDEX = "index"


@dataclass(frozen=True, kw_only=True)
class LogitRows:
    """A sample's rows among those of its batch."""

    arrays: HostArrays
    rows: slice


@dataclass(frozen=True, kw_only=True)
class Captured:
    """The targets of one sample in parts of the store's codecs; None where the store keeps nothing.

    Attributes:
        attention: parts of [blocks, R, Ht, C], see `PositionMap.attention_blocks`.
        vision_top: `VISION_TOP_INDEX`, int32 [K], eq. 2, counted through all images; with parts of [K, Dt] unless
            the codec of `vision_top` is `from_all`.
        vision: parts of [P, Dt] for each image.
        logits: see `distribution.keep_distribution`.
        counterfactual: see `CounterfactualPass`; None also for a sample without images.
    """

    attention: HostArrays | None
    vision_top: HostArrays | None
    vision: tuple[HostArrays, ...]
    logits: LogitRows
    counterfactual: CounterfactualRows | None = None

    def arrive(self) -> None:
        """Wait until everything is on the host, so that the device memory is freed."""
        for arrays in (self.attention, self.vision_top, *self.vision, self.logits.arrays):
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
    """

    def __init__(self, model: VisionLanguageModel, config: StoreConfig, *, num_tokens: int | None = None) -> None:
        self.model, self.config = model, config
        self._codec, self._num_tokens = config.logits, num_tokens
        self._keeps_attention, self._keeps_top = (
            codec not in NOT_STORED for codec in (config.attention, config.vision_top)
        )
        self._copies = HostCopies(model.device)
        self._images = SeenImages(model, config.vision_all, self._copies)
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
        watches = self._keeps_attention or self._keeps_top or (second is not None and second.needs_attention)
        with self.model.watched_first_layer() if watches else nullcontext() as first_layer:
            images, hidden_BLD = self._forward(samples)
        with_image = [row for row, sample in enumerate(samples) if sample.image_hashes]
        found = dict(zip(with_image, self._attention_targets(samples, with_image, first_layer, images), strict=True))
        evidence = [] if second is None else second.evidence(samples, with_image, first_layer)
        del first_layer  # free its queries and keys before the logits are computed
        logits = self._logits(samples, hidden_BLD)
        compared = self._counterfactual(samples, with_image, images, hidden_BLD, evidence)
        self._images.end_batch(samples)
        return [
            Captured(
                attention=found[row][0] if row in found else None,
                vision_top=found[row][1] if row in found else None,
                vision=tuple(parts for key in image_keys(sample) if (parts := images[key].parts) is not None),
                logits=logits[row],
                counterfactual=compared.get(row),
            )
            for row, sample in enumerate(samples)
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
        )
        arrays, ends = self._copies.start(kept), np.cumsum(counts).tolist()
        return [LogitRows(arrays=arrays, rows=slice(end - count, end)) for end, count in zip(ends, counts, strict=True)]

    def _counterfactual(
        self,
        samples: Sequence[Prepared],
        rows: Sequence[int],
        images: dict[ImageKey, SeenImage],
        hidden_BLD: Tensor,
        evidence: Sequence[Tensor | None],
    ) -> dict[int, CounterfactualRows]:
        """The second pass over the samples that have images, by their rows in the batch."""
        if self._second is None or not rows:
            return {}
        own = [samples[row] for row in rows]
        visions = [Vision.join([images[key].vision for key in image_keys(sample)]) for sample in own]
        counts = [len(sample.example.positions.next_labels) for sample in samples]
        first = self._supervised(samples, hidden_BLD).split(counts)
        second_ND = self._supervised(own, self._second.states(own, visions, evidence))
        found = self._second.rows(own, (torch.cat([first[row] for row in rows]), second_ND), evidence)
        return dict(zip(rows, found, strict=True))

    def _attention_targets(
        self,
        samples: Sequence[Prepared],
        rows: Sequence[int],
        first_layer: AttentionLayer | None,
        images: dict[ImageKey, SeenImage],
    ) -> list[tuple[HostArrays | None, HostArrays | None]]:
        """Attention and `vision_top` of each sample that has an image; `rows` are its rows in the batch."""
        if not rows or first_layer is None:
            return [(None, None)] * len(rows)
        config = self.config
        kinds: set[AttentionPairs] = {config.attention_pairs} if self._keeps_attention else set()
        if self._keeps_top:
            kinds.add("tqv")
        found = []
        for group in self._groups(samples, rows, kinds):
            maps = [samples[row].example.positions for row in group]
            probs = {pairs: self._attention(maps, group, first_layer, pairs) for pairs in kinds}
            for number, (row, positions) in enumerate(zip(group, maps, strict=True)):
                attention = top = None
                if self._keeps_attention:
                    blocks = len(positions.attention_blocks(config.attention_pairs))
                    attention_RHC = probs[config.attention_pairs][number].transpose(0, 1)
                    attention = self._copies.start(encode(config.attention, in_blocks(attention_RHC, blocks)))
                if self._keeps_top:
                    embeddings = [images[key].vision.embeddings_PD for key in image_keys(samples[row])]
                    top = self._vision_top(probs["tqv"][number], torch.cat(embeddings))
                found.append((attention, top))
        return found

    def _groups(
        self, samples: Sequence[Prepared], rows: Sequence[int], kinds: Iterable[AttentionPairs]
    ) -> Iterator[list[int]]:
        """The `rows` in groups whose attention has at most `ENCODED_BYTES`."""
        group: list[int] = []
        largest = 0
        for row in rows:
            positions = samples[row].example.positions
            size = sum(len(positions.attention_rows(pairs)) * len(positions.attention_cols(pairs)) for pairs in kinds)
            largest = max(largest, 4 * self.model.config.num_heads * size)
            if group and (len(group) + 1) * largest > ENCODED_BYTES:
                yield group
                group, largest = [], 4 * self.model.config.num_heads * size
            group.append(row)
        yield group

    def _vision_top(self, tqv_attention_HQP: Tensor, vision_PD: Tensor) -> HostArrays:
        index = vision_top_index(tqv_attention_HQP)
        top = {} if self.config.vision_top == FROM_ALL else encode(self.config.vision_top, vision_PD[index])
        return self._copies.start({VISION_TOP_INDEX: index.to(torch.int32), **top})

    def _attention(
        self,
        maps: Sequence[PositionMap],
        samples: Sequence[int],
        first_layer: AttentionLayer,
        pairs: AttentionPairs,
    ) -> list[Tensor]:
        """First-layer attention float32 [Ht, R, C] of each of the `samples` of the batch."""
        rows, cols = [at.attention_rows(pairs) for at in maps], [at.attention_cols(pairs) for at in maps]
        every = len(samples) == first_layer.num_samples
        samples_I = None if every else self._indices(np.asarray(samples))
        probs_IHRC = first_layer.attention(
            self._padded(rows),
            self._padded(cols),
            samples_I,
            chunk_bytes=ATTENTION_BYTES_CPU if self.model.device.type == "cpu" else ATTENTION_BYTES,
        )
        return [
            probs_HRC[:, : len(row), : len(col)] for probs_HRC, row, col in zip(probs_IHRC, rows, cols, strict=True)
        ]

    def _padded(self, positions: Sequence[NDArray[np.int32]]) -> Tensor:
        return to_device(pad_positions(positions)[0], self.model.device)

    def _indices(self, values: NDArray[Any]) -> Tensor:
        return to_device(torch.from_numpy(values.astype(np.int64)), self.model.device)


def in_blocks(attention_RHC: Tensor, blocks: int) -> Tensor:
    """[R, Ht, blocks * C] -> [blocks, R, Ht, C]."""
    attention_kRHC: Tensor = attention_RHC.unflatten(-1, (blocks, -1)).permute(2, 0, 1, 3)
    return attention_kRHC
