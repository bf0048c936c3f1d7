"""Targets made of the teacher's last hidden states, beyond its logits: the states at the vision positions, cosines.

Shapes: B samples, L positions, P vision tokens of all images of a batch, Dt hidden size.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from alignkd.storage.codecs.settings import NONE
from alignkd.storage.record.record import Target
from alignkd.storage.schema.targets.affinity import AFFINITY
from alignkd.storage.schema.targets.vision import VISION_STATES
from alignkd.teacher_dump.preparation import Prepared
from alignkd.teacher_dump.settings.store import StoreConfig
from alignkd.teacher_dump.targets.affinity import affinities
from alignkd.teacher_dump.targets.device_codecs import EXTREMES, Parts, StoredParts, encode, extremes
from alignkd.teacher_dump.targets.host_copies import HostArrays, HostCopies
from alignkd.vlm.hardware.transfers import to_device


@dataclass(frozen=True, kw_only=True)
class StateRows:
    """One sample's rows of a target of its batch.

    Attributes:
        name: of the further target.
        codec: name of its codec.
        arrays: stored parts of all samples of the batch, with the extremes of each row; or of this sample alone.
        rows: those of the sample.
    """

    name: str
    codec: str
    arrays: HostArrays
    rows: slice

    def target(self) -> Target:
        """The target in the form that a record holds; waits for the copies to the host.

        Raises:
            RecordError: a value is NaN or infinite, or the codec cannot hold it.
        """
        parts = {name: values[self.rows] for name, values in self.arrays.wait().items()}
        found = parts[EXTREMES]
        # the extremes of the sample's own rows, so that one sample's NaN does not affect others
        parts[EXTREMES] = np.array([found[..., 0].min(initial=0), found[..., 1].max(initial=0)], np.float32)
        return StoredParts(codec=self.codec, parts=parts).target(self.name)


class StatesCapture:
    """Makes the targets of a batch from its last hidden states.

    Args:
        config: section `store`.
        copies: starts the copies to the host.
    """

    def __init__(self, config: StoreConfig, copies: HostCopies) -> None:
        self.config, self._copies = config, copies

    def __call__(self, samples: Sequence[Prepared], hidden_BLD: Tensor) -> list[tuple[StateRows, ...]]:
        """The targets of each sample, encoded on the device."""
        found: list[list[StateRows]] = [[] for _ in samples]
        if self.config.vision_states != NONE:
            self._vision_states(samples, hidden_BLD, found)
        if (codec := self.config.vision_text_affinity) != NONE:
            for row, arrays in affinities(codec, samples, hidden_BLD, self._copies).items():
                found[row].append(StateRows(name=AFFINITY, codec=codec, arrays=arrays, rows=slice(None)))
        return [tuple(rows) for rows in found]

    def _vision_states(self, samples: Sequence[Prepared], hidden_BLD: Tensor, found: list[list[StateRows]]) -> None:
        """States at the vision positions of the samples that have images."""
        positions = [sample.example.positions.vision_positions for sample in samples]
        counts = [len(own) for own in positions]
        if not any(counts):
            return
        states_PD = at_positions(hidden_BLD, positions)
        arrays = self._copies.start(_encoded_rows(self.config.vision_states, states_PD))
        for own, rows, count in zip(found, _slices(counts), counts, strict=True):
            if count:
                own.append(StateRows(name=VISION_STATES, codec=self.config.vision_states, arrays=arrays, rows=rows))


def at_positions(hidden_BLD: Tensor, positions: Sequence[np.ndarray]) -> Tensor:
    """States [n, D] at the positions of each sample, whose indices come from the host to avoid a sync."""
    places = [own.astype(np.int64) + row * hidden_BLD.shape[1] for row, own in enumerate(positions)]
    return hidden_BLD.flatten(0, 1)[to_device(torch.from_numpy(np.concatenate(places)), hidden_BLD.device)]


def _encoded_rows(codec: str, values_RD: Tensor) -> Parts:
    """The stored parts of rows, with the extremes of each."""
    return {**encode(codec, values_RD), EXTREMES: extremes(values_RD.float(), dim=-1)}


def _slices(counts: Sequence[int]) -> list[slice]:
    """The rows of each sample."""
    ends = np.cumsum(counts).tolist()
    return [slice(end - count, end) for end, count in zip(ends, counts, strict=True)]
