"""Targets made of the teacher's states beyond its logits: states and relations of vision tokens, norms,
cosines of text queries and vision tokens.

Shapes: B samples, L positions, P vision tokens of all images of a batch, N supervised positions, Dt hidden size.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from alignkd.storage.codecs.settings import NONE
from alignkd.storage.errors import RecordError
from alignkd.storage.record.record import Target
from alignkd.storage.schema.targets.affinity import AFFINITY
from alignkd.storage.schema.targets.vision import (
    LAST_HIDDEN,
    PROJECTOR,
    STATE_NORMS,
    VISION_STATES,
    relations_target,
)
from alignkd.teacher_dump.preparation import Prepared
from alignkd.teacher_dump.settings.store import StoreConfig
from alignkd.teacher_dump.targets.affinity import affinities
from alignkd.teacher_dump.targets.device_codecs import EXTREMES, Parts, StoredParts, encode, extremes
from alignkd.teacher_dump.targets.host_copies import HostArrays, HostCopies
from alignkd.teacher_dump.targets.seen_images import ImageKey, SeenImage, image_keys
from alignkd.vlm.hardware.transfers import to_device
from alignkd.vlm.relations import cosine_triangle


@dataclass(frozen=True, kw_only=True)
class StateRows:
    """One sample's rows of a target of its batch.

    Attributes:
        name: of the further target.
        codec: name of its codec.
        arrays: stored parts of all samples of the batch, with the extremes of each row; or of this sample alone.
        rows: those of the sample.
        problem: why the sample has no such target; None if it has.
    """

    name: str
    codec: str
    arrays: HostArrays
    rows: slice
    problem: str | None = None

    def target(self) -> Target:
        """The target in the form that a record holds; waits for the copies to the host.

        Raises:
            RecordError: a value is NaN or infinite, the codec cannot hold it, or there is a `problem`.
        """
        if self.problem is not None:
            raise RecordError(f"{self.name}: {self.problem}")
        parts = {name: values[self.rows] for name, values in self.arrays.wait().items()}
        found = parts[EXTREMES]
        # the extremes of the sample's own rows, so that one sample's NaN does not affect others
        parts[EXTREMES] = np.array([found[..., 0].min(initial=0), found[..., 1].max(initial=0)], np.float32)
        return StoredParts(codec=self.codec, parts=parts).target(self.name)


class StatesCapture:
    """Makes the targets of a batch from its states.

    Args:
        config: section `store`.
        copies: starts the copies to the host.

    Attributes:
        layers: the decoder layers whose output is needed.
    """

    def __init__(self, config: StoreConfig, copies: HostCopies) -> None:
        self.config, self._copies = config, copies
        self.layers = config.recorded_layers

    def __call__(
        self,
        samples: Sequence[Prepared],
        hidden_BLD: Tensor,
        images: Mapping[ImageKey, SeenImage],
        after_layers: Mapping[int, Tensor],
    ) -> list[tuple[StateRows, ...]]:
        """The targets of each sample, encoded on the device.

        Args:
            hidden_BLD: last hidden states after the final norm.
            images: the encoded images of the batch.
            after_layers: output of each of `layers`.
        """
        config = self.config
        found: list[list[StateRows]] = [[] for _ in samples]
        vision = [sample.example.positions.vision_positions for sample in samples]
        if config.vision_states != NONE and any(map(len, vision)):
            self._add(found, VISION_STATES, config.vision_states, at_positions(hidden_BLD, vision), vision)
        if config.vision_relations != NONE:
            related = self._related(samples, hidden_BLD, images, after_layers)
            self._add_relations(found, samples, related, hidden_BLD.device)
        if config.state_norms != NONE:
            supervised = [sample.example.positions.supervised_positions for sample in samples]
            norms_N1 = at_positions(hidden_BLD, supervised).float().norm(dim=-1, keepdim=True)
            self._add(found, STATE_NORMS, config.state_norms, norms_N1, supervised, squeeze=True)
        if (codec := config.vision_text_affinity) != NONE:
            for row, arrays in affinities(codec, samples, hidden_BLD, self._copies).items():
                found[row].append(StateRows(name=AFFINITY, codec=codec, arrays=arrays, rows=slice(None)))
        return [tuple(rows) for rows in found]

    def _add(
        self,
        found: list[list[StateRows]],
        name: str,
        codec: str,
        values_RD: Tensor,
        positions: Sequence[NDArray[Any]],
        *,
        squeeze: bool = False,
    ) -> None:
        """Rows of all samples, encoded together; a sample without images has no rows at vision positions."""
        arrays = self._copies.start(_encoded_rows(codec, values_RD, squeeze=squeeze))
        counts = [len(own) for own in positions]
        for own, rows, count in zip(found, _slices(counts), counts, strict=True):
            if count or name == STATE_NORMS:
                own.append(StateRows(name=name, codec=codec, arrays=arrays, rows=rows))

    def _related(
        self,
        samples: Sequence[Prepared],
        hidden_BLD: Tensor,
        images: Mapping[ImageKey, SeenImage],
        after_layers: Mapping[int, Tensor],
    ) -> list[list[Tensor]]:
        """The states [P, D] of each image of each sample that relations compare."""
        of = self.config.relations_of
        if of == PROJECTOR:
            return [[images[key].vision.embeddings_PD for key in image_keys(sample)] for sample in samples]
        states_BLD = hidden_BLD if of == LAST_HIDDEN else after_layers[self.layers[0]]
        positions = [sample.example.positions for sample in samples]
        states_PD = at_positions(states_BLD, [own.vision_positions for own in positions])
        parts = iter(states_PD.split([tokens for own in positions for tokens in own.tokens_of_image]))
        return [[next(parts) for _ in own.tokens_of_image] for own in positions]

    def _add_relations(
        self,
        found: list[list[StateRows]],
        samples: Sequence[Prepared],
        related: Sequence[Sequence[Tensor]],
        device: torch.device,
    ) -> None:
        codec = self.config.vision_relations
        name = relations_target(codec, self.config.relations_of).name
        for own, sample, states in zip(found, samples, related, strict=True):
            triangles = [cosine_triangle(states_PD.float()[None])[0] for states_PD in states]
            none_R = torch.zeros(0, device=device)
            arrays = self._copies.start(encode(codec, torch.cat([none_R, *triangles])))
            problem = None
            if min(sample.example.positions.tokens_of_image, default=2) < 2:
                problem = "an image is one vision token, so there is no pair; set store.vision_relations to none"
            own.append(StateRows(name=name, codec=codec, arrays=arrays, rows=slice(None), problem=problem))


def at_positions(hidden_BLD: Tensor, positions: Sequence[NDArray[Any]]) -> Tensor:
    """States [n, D] at the positions of each sample, whose indices come from the host to avoid a sync."""
    places = [own.astype(np.int64) + row * hidden_BLD.shape[1] for row, own in enumerate(positions)]
    return hidden_BLD.flatten(0, 1)[to_device(torch.from_numpy(np.concatenate(places)), hidden_BLD.device)]


def _encoded_rows(codec: str, values_RD: Tensor, *, squeeze: bool) -> Parts:
    """The stored parts of rows, with the extremes of each; `squeeze` leaves out an axis of length 1."""
    parts = encode(codec, values_RD[:, 0] if squeeze else values_RD)
    return {**parts, EXTREMES: extremes(values_RD.float(), dim=-1)}


def _slices(counts: Sequence[int]) -> list[slice]:
    """The rows of each sample."""
    ends = np.cumsum(counts).tolist()
    return [slice(end - count, end) for end, count in zip(ends, counts, strict=True)]
