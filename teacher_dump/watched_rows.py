"""The attention of chosen layers of the teacher to vision tokens, sample by sample, for figures: nothing is stored.

Shapes: H heads, R attention rows, C attention columns.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from alignkd.storage.codecs.settings import NONE
from alignkd.storage.schema.targets.attention import LayerPairs
from alignkd.storage.tools.layers.rows import SampleLayers, image_blocks
from alignkd.teacher_dump.preparation import Prepared
from alignkd.teacher_dump.targets.host_copies import HostCopies, batch_to_device
from alignkd.teacher_dump.targets.seen_images import SeenImages, image_keys
from alignkd.vlm.attention.attention_rows import chunk_bytes_on
from alignkd.vlm.attention.layer import AttentionLayer
from alignkd.vlm.families.family import Vision, VisionLanguageModel
from alignkd.vlm.hardware.transfers import to_device
from alignkd.vlm.inputs.batch import collate_sequences

R = TypeVar("R")


class WatchedRows:
    """Runs the teacher on batches of samples with images, and reduces each sample's attention.

    Args:
        model: the teacher.
        layers: numbers of decoder layers that have attention, ascending.
        pairs: rows and columns of the attention.
    """

    def __init__(self, model: VisionLanguageModel, layers: Sequence[int], pairs: LayerPairs) -> None:
        self.model, self.layers, self.pairs = model, layers, pairs
        self._images = SeenImages(model, NONE, HostCopies(model.device))

    def begin_window(self, samples: Iterable[Prepared]) -> None:
        """Drop cached images, and count the images of the window: those of several samples are computed once."""
        self._images.begin_window(samples)

    @torch.no_grad()
    def __call__(self, samples: Sequence[Prepared], reduce: Callable[[SampleLayers], R]) -> list[R]:
        """`reduce` of the float32 blocks [R, H, C] of each sample's layers; the blocks exist one layer at a time.

        Raises:
            torch.OutOfMemoryError: the batch does not fit the device.
        """
        batch = batch_to_device(collate_sequences([sample.example for sample in samples]), self.model.device)
        images = self._images.see(samples)
        vision = Vision.join([images[key].vision for sample in samples for key in image_keys(sample)])
        with self.model.watched_layers(self.layers) as watched:
            self.model.hidden_states(batch, vision)
        found = [reduce(self._blocks(watched, number, sample)) for number, sample in enumerate(samples)]
        self._images.end_batch(samples)
        return found

    def _blocks(
        self, watched: Mapping[int, AttentionLayer], number: int, sample: Prepared
    ) -> Iterator[tuple[int, list[NDArray[np.float32]]]]:
        positions = sample.example.positions
        rows_1R, cols_1C, sample_1 = (
            to_device(torch.from_numpy(np.asarray(values, np.int64)), self.model.device)
            for values in (
                positions.attention_rows(self.pairs)[None],
                positions.attention_cols(self.pairs)[None],
                [number],
            )
        )
        limit = chunk_bytes_on(self.model.device.type)
        for layer in self.layers:
            probs_1HRC = watched[layer].attention(rows_1R, cols_1C, sample_1, chunk_bytes=limit)
            yield layer, image_blocks(probs_1HRC[0].float().cpu().numpy(), positions.tokens_of_image, self.pairs)
