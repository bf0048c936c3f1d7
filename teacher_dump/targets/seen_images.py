"""The vision embeddings of each distinct image of a window, computed once.

Shapes: P vision tokens of an image, Dt hidden size.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from alignkd.storage.codecs.settings import NOT_STORED
from alignkd.teacher_dump.preparation import Prepared
from alignkd.teacher_dump.targets.device_codecs import encode
from alignkd.teacher_dump.targets.host_copies import HostArrays, HostCopies
from alignkd.vlm.errors import InputError, one_line
from alignkd.vlm.families.family import Vision, VisionLanguageModel
from alignkd.vlm.hardware.memory_faults import may_be_out_of_memory
from alignkd.vlm.hardware.transfers import to_device
from alignkd.vlm.inputs.batch import ImageTensors
from alignkd.vlm.inputs.examples import ImageArrays

IMAGES_AT_ONCE = 16
# bytes of the arrays of the images that the tower takes at once, to which its activations are proportional
BYTES_AT_ONCE = 64 << 20

ImageKey = tuple[str, int]


def image_keys(sample: Prepared) -> list[ImageKey]:
    """What decides the embeddings of each image of a sample: its file, and how many images the sample has.

    The number is always 1 where every image has the same number of vision tokens. Elsewhere it counts: LLaVA-OneVision
    divides an image into tiles only if it is the only one of its sample.
    """
    positions = sample.example.positions
    number = 1 if positions.blocks_of_images else positions.num_images
    return [(image, number) for image in sample.image_hashes]


@dataclass(frozen=True, kw_only=True)
class SeenImage:
    """An image after tower and projector, on the device; and the parts of its embeddings if `vision_all` is stored."""

    vision: Vision
    parts: HostArrays | None


@dataclass(frozen=True, kw_only=True)
class _Unit:
    """Images that the tower takes together: those of one sample, or a single one."""

    keys: list[ImageKey]
    arrays: Sequence[ImageArrays]
    tokens: Sequence[int]

    @property
    def num_bytes(self) -> int:
        return sum(values.nbytes for arrays in self.arrays for values in arrays.values())


class SeenImages:
    """Encodes images, and keeps those that later batches of the window need again.

    Args:
        model: the teacher.
        codec: codec of `vision_all`.
        copies: starts the copies to the host.
    """

    def __init__(self, model: VisionLanguageModel, codec: str, copies: HostCopies) -> None:
        self._model, self._codec, self._copies = model, codec, copies
        self._shared: dict[ImageKey, SeenImage] = {}
        self._uses: Counter[ImageKey] = Counter()

    def begin_window(self, samples: Iterable[Prepared]) -> None:
        """Drop all images, and count the samples that need each image."""
        self._shared = {}
        self._uses = Counter(key for sample in samples for key in set(image_keys(sample)))

    def end_batch(self, samples: Iterable[Prepared]) -> None:
        """Drop the images that no later sample of the window needs."""
        for key in (key for sample in samples for key in set(image_keys(sample))):
            self._uses[key] -= 1
            if self._uses[key] <= 0:
                self._shared.pop(key, None)

    def see(self, samples: Sequence[Prepared]) -> dict[ImageKey, SeenImage]:
        """The images of a batch: kept ones, and new ones in the order of the samples.

        Raises:
            InputError: the model gives an image another number of vision tokens than its processor.
        """
        seen = {key: self._shared[key] for sample in samples for key in image_keys(sample) if key in self._shared}
        for units in _groups(_new_units(samples, seen)):
            for key, image in self._encoded(units):
                seen[key] = image
                if self._uses[key] > 1:
                    self._shared[key] = image
        return seen

    def _encoded(self, units: Sequence[_Unit]) -> Iterator[tuple[ImageKey, SeenImage]]:
        images = [self._on_device(arrays) for unit in units for arrays in unit.arrays]
        samples = [number for number, unit in enumerate(units) for _ in unit.keys]
        try:
            found = self._model.encode_images(images, samples)
        except (RuntimeError, ValueError, IndexError, TypeError) as error:
            if may_be_out_of_memory(error) or "CUDA" in str(error):
                raise
            names = ", ".join(dict.fromkeys(key[0][:12] for unit in units for key in unit.keys))
            raise InputError(
                f"the teacher fails on an image ({type(error).__name__}: {one_line(error)[:160]}); one of those with "
                f"sha256 {names}: remove its samples, or change its size"
            ) from error
        expected = tuple(count for unit in units for count in unit.tokens)
        if found.tokens_of_image != expected:
            raise InputError(
                f"the teacher gives {found.tokens_of_image} vision tokens per image, its processor {expected}; give a "
                "checkpoint whose config.json and processor files belong together"
            )
        for key, vision in zip((key for unit in units for key in unit.keys), found.split(), strict=True):
            parts = None
            if self._codec not in NOT_STORED:
                parts = self._copies.start(encode(self._codec, vision.embeddings_PD))
            yield key, SeenImage(vision=vision, parts=parts)

    def _on_device(self, arrays: ImageArrays) -> ImageTensors:
        return {
            name: to_device(torch.from_numpy(np.ascontiguousarray(values)), self._model.device)
            for name, values in arrays.items()
        }


def _new_units(samples: Sequence[Prepared], seen: dict[ImageKey, SeenImage]) -> Iterator[_Unit]:
    """The images that are not in `seen`; where the number of images counts, all images of their sample."""
    known = set(seen)
    for sample in samples:
        keys, positions = image_keys(sample), sample.example.positions
        wholes = [range(len(keys))] if not positions.blocks_of_images else [[place] for place in range(len(keys))]
        for places in wholes:
            unit = [keys[place] for place in places]
            if known.issuperset(unit):
                continue
            known.update(unit)
            yield _Unit(
                keys=unit,
                arrays=[sample.images[place] for place in places],
                tokens=[positions.tokens_of_image[place] for place in places],
            )


def _groups(units: Iterable[_Unit]) -> Iterator[list[_Unit]]:
    """Consecutive units of at most `IMAGES_AT_ONCE` images and `BYTES_AT_ONCE` bytes, but at least one unit."""
    group: list[_Unit] = []
    images = size = 0
    for unit in units:
        if group and (images + len(unit.keys) > IMAGES_AT_ONCE or size + unit.num_bytes > BYTES_AT_ONCE):
            yield group
            group, images, size = [], 0, 0
        group.append(unit)
        images, size = images + len(unit.keys), size + unit.num_bytes
    if group:
        yield group
