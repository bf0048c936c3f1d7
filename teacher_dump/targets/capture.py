"""One forward pass of the teacher and its targets, encoded on the device and copied to the host.

Shapes: B samples, L positions, k images of a sample, I images, R attention rows, C attention columns, P vision tokens
of an image, Ht heads, Dt hidden size, N supervised positions.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
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
from alignkd.teacher_dump.targets.device_codecs import encode
from alignkd.teacher_dump.targets.distribution import draws_of, keep_distribution
from alignkd.teacher_dump.targets.host_copies import HostArrays, HostCopies, batch_to_device, to_device
from alignkd.vlm.attention.focus import vision_top_index
from alignkd.vlm.families.mobilevlm.model.attention import FirstLayer
from alignkd.vlm.families.mobilevlm.model.mobilevlm import MobileVLM
from alignkd.vlm.inputs.batch import collate_sequences, pad_positions
from alignkd.vlm.inputs.position_map import AttentionPairs, PositionMap

IMAGES_AT_ONCE = 16
# bytes of float32 [B, Ht, r, L] for r rows at a time; on a CPU as much as stays in the cache
ATTENTION_BYTES = 256 << 20
ATTENTION_BYTES_CPU = 8 << 20
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
        attention: parts of [k, R, Ht, C], a block of columns for each of k images; one block where the columns are
            text tokens.
        vision_top: `VISION_TOP_INDEX`, int32 [16], eq. 2, counted through all images; with parts of [16, Dt] unless
            the codec of `vision_top` is `from_all`.
        vision: parts of [P, Dt] for each image.
        logits: see `distribution.keep_distribution`.
    """

    attention: HostArrays | None
    vision_top: HostArrays | None
    vision: tuple[HostArrays, ...]
    logits: LogitRows

    def arrive(self) -> None:
        """Wait until everything is on the host, so that the device memory is freed."""
        for arrays in (self.attention, self.vision_top, *self.vision, self.logits.arrays):
            if arrays is not None:
                arrays.wait()


@dataclass(frozen=True, kw_only=True)
class SeenImage:
    """An image after tower and projector: [P, Dt] on the device, and its parts if `vision_all` is stored."""

    embeddings_PD: Tensor
    parts: HostArrays | None


class Capture:
    """Runs the teacher on batches and captures targets.

    Args:
        model: the teacher.
        config: section `store`.
    """

    def __init__(self, model: MobileVLM, config: StoreConfig) -> None:
        self.model, self.config = model, config
        self._codec = config.logits
        self._keeps_attention_targets = any(codec not in NOT_STORED for codec in (config.attention, config.vision_top))
        self._copies = HostCopies(model.device)
        self._shared: dict[str, SeenImage] = {}
        self._uses: Counter[str] = Counter()

    def begin_window(self, samples: Iterable[Prepared]) -> None:
        """Drop cached images, and count the images of the window: those of several samples are computed once."""
        self._shared = {}
        self._uses = Counter(image for sample in samples for image in set(sample.image_hashes))

    @torch.no_grad()
    def __call__(self, samples: Sequence[Prepared]) -> list[Captured]:
        """Run the teacher on `samples` as one batch and return the targets of each.

        Raises:
            torch.OutOfMemoryError: the batch does not fit the device.
        """
        with self.model.watched_first_layer() if self._keeps_attention_targets else nullcontext() as first_layer:
            images, hidden_BLD = self._forward(samples)
        with_image = [row for row, sample in enumerate(samples) if sample.image_hashes]
        found = dict(zip(with_image, self._attention_targets(samples, with_image, first_layer, images), strict=True))
        del first_layer  # free its queries and keys before the logits are computed
        logits = self._logits(samples, hidden_BLD)
        return [
            Captured(
                attention=found[row][0] if row in found else None,
                vision_top=found[row][1] if row in found else None,
                vision=tuple(parts for image in sample.image_hashes if (parts := images[image].parts) is not None),
                logits=logits[row],
            )
            for row, sample in enumerate(samples)
        ]

    @torch.no_grad()
    def supervised_states(self, samples: Sequence[Prepared]) -> list[Tensor]:
        """The last hidden states [N, Dt] of each sample at its supervised positions, from one forward pass."""
        _, hidden_BLD = self._forward(samples)
        counts = [len(sample.example.positions.next_labels) for sample in samples]
        return list(self._supervised(samples, hidden_BLD).split(counts))

    def _forward(self, samples: Sequence[Prepared]) -> tuple[dict[str, SeenImage], Tensor]:
        """Images by hash, and last hidden states [B, L, Dt]."""
        batch = batch_to_device(collate_sequences([sample.example for sample in samples]), self.model.device)
        images = self._see(samples)
        vision = [images[image].embeddings_PD for sample in samples for image in sample.image_hashes]
        embeds_BLD = self.model.embed(batch, torch.stack(vision) if vision else None)
        return images, self.model.hidden_states(embeds_BLD)

    def _supervised(self, samples: Sequence[Prepared], hidden_BLD: Tensor) -> Tensor:
        """Hidden states [N, Dt] at all supervised positions, whose indices come from the host to avoid a sync."""
        places = [
            sample.example.positions.supervised_positions.astype(np.int64) + row * hidden_BLD.shape[1]
            for row, sample in enumerate(samples)
        ]
        return hidden_BLD.flatten(0, 1)[self._indices(np.concatenate(places))]

    def _see(self, samples: Sequence[Prepared]) -> dict[str, SeenImage]:
        """The images of the batch by hash: cached ones, and new ones in the order of the samples."""
        pixels = {
            image: pixels_CHW
            for sample in samples
            for image, pixels_CHW in zip(sample.image_hashes, sample.pixels, strict=True)
        }
        new = [image for image in pixels if image not in self._shared]
        seen = {image: self._shared[image] for image in pixels if image in self._shared}
        for start in range(0, len(new), IMAGES_AT_ONCE):
            names = new[start : start + IMAGES_AT_ONCE]
            stacked_ICHW = torch.from_numpy(np.stack([pixels[image] for image in names]))
            vision_IPD = self.model.encode_images(to_device(stacked_ICHW, self.model.device))
            for image, vision_PD in zip(names, vision_IPD.unbind(), strict=True):
                parts = None
                if self.config.vision_all not in NOT_STORED:
                    parts = self._copies.start(encode(self.config.vision_all, vision_PD))
                seen[image] = SeenImage(embeddings_PD=vision_PD, parts=parts)
                if self._uses[image] > 1:
                    self._shared[image] = seen[image]
        return seen

    def _logits(self, samples: Sequence[Prepared], hidden_BLD: Tensor) -> list[LogitRows]:
        labels = [sample.example.positions.next_labels for sample in samples]
        counts = [len(own) for own in labels]
        numbers = [sample.sample.index for sample in samples]
        drawn = draws_of(self._codec, self.config.seed, list(zip(numbers, counts, strict=True)))
        kept = keep_distribution(
            self.model.lm_head,
            self._supervised(samples, hidden_BLD),
            self._indices(np.concatenate(labels)),
            None if drawn is None else to_device(torch.from_numpy(drawn), self.model.device),
            self._codec,
        )
        arrays, ends = self._copies.start(kept), np.cumsum(counts).tolist()
        return [LogitRows(arrays=arrays, rows=slice(end - count, end)) for end, count in zip(ends, counts, strict=True)]

    def _attention_targets(
        self,
        samples: Sequence[Prepared],
        rows: Sequence[int],
        first_layer: FirstLayer | None,
        images: dict[str, SeenImage],
    ) -> list[tuple[HostArrays | None, HostArrays | None]]:
        """Attention and `vision_top` of each sample that has an image; `rows` are its rows in the batch."""
        config = self.config
        keeps_attention, keeps_top = (codec not in NOT_STORED for codec in (config.attention, config.vision_top))
        if not rows or first_layer is None:
            return [(None, None)] * len(rows)
        maps = [samples[row].example.positions for row in rows]
        kinds = {pairs for pairs, kept in ((config.attention_pairs, keeps_attention), ("tqv", keeps_top)) if kept}
        probs = {pairs: self._attention(maps, rows, first_layer, pairs) for pairs in kinds}
        found = []
        for number, (row, positions) in enumerate(zip(rows, maps, strict=True)):
            attention = top = None
            if keeps_attention:
                blocks = len(positions.attention_blocks(config.attention_pairs))
                attention_RHC = probs[config.attention_pairs][number].transpose(0, 1)
                attention = self._copies.start(encode(config.attention, in_blocks(attention_RHC, blocks)))
            if keeps_top:
                vision_PD = torch.cat([images[image].embeddings_PD for image in samples[row].image_hashes])
                top = self._vision_top(probs["tqv"][number], vision_PD)
            found.append((attention, top))
        return found

    def _vision_top(self, tqv_attention_HQP: Tensor, vision_PD: Tensor) -> HostArrays:
        index = vision_top_index(tqv_attention_HQP)
        top = {} if self.config.vision_top == FROM_ALL else encode(self.config.vision_top, vision_PD[index])
        return self._copies.start({VISION_TOP_INDEX: index.to(torch.int32), **top})

    def _attention(
        self,
        maps: Sequence[PositionMap],
        samples: Sequence[int],
        first_layer: FirstLayer,
        pairs: AttentionPairs,
    ) -> list[Tensor]:
        """Layer 0 attention float32 [Ht, R, C] of each of the `samples` of the batch."""
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
    """[R, Ht, k * C] -> [k, R, Ht, C]."""
    attention_kRHC: Tensor = attention_RHC.unflatten(-1, (blocks, -1)).permute(2, 0, 1, 3)
    return attention_kRHC
