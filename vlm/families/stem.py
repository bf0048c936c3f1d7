"""The interface of a stem: what gives attention of first layers and vision embeddings without the teacher.

A `StemDesign` lists what the stem of one teacher consists of; a `Stem` holds the tensors and computes targets from the
output of the student's frozen vision tower, which must be the teacher's too.

A stem of depth k has the decoder's layers 0..k-2 whole, and of layer k-1 what its queries and keys depend on. Layer k-1
has attention. The smallest depth ends in the first layer that has attention: 1, but for some hybrid models.

Shapes: B samples, L positions, P vision tokens of all images, U different token ids of a batch, Dt hidden size of the
teacher, V vocabulary.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from alignkd.vlm.attention.layer import AttentionLayer
from alignkd.vlm.families.family import Checkpoint, Head, ModelConfig, Vision, VisionLanguageModel
from alignkd.vlm.inputs.batch import ImageTensors, SequenceBatch

# entry of a stem file's metadata; absent where the depth is the smallest one, as in files written before it existed
DEPTH = "depth"


@dataclass(frozen=True, kw_only=True)
class TextRows:
    """The token embeddings of a batch, each different token once.

    Attributes:
        rows_UD: [U, Dt], in the table's dtype.
        index_BL: int64, row of each position.
    """

    rows_UD: Tensor
    index_BL: Tensor


class EmbeddingTable:
    """The teacher's token embeddings [V, Dt] on the host, mapped from a stem file if they come from one."""

    def __init__(self, weight_VD: Tensor) -> None:
        self._weight_VD = weight_VD

    def rows(self, input_ids_BL: Tensor) -> TextRows:
        """The rows of the table that a batch needs; only these are copied to a device.

        Args:
            input_ids_BL: int64 on the host; 0 at positions whose embedding is replaced, and at padding.
        """
        ids_U, index_N = input_ids_BL.flatten().unique(return_inverse=True)
        return TextRows(rows_UD=self._weight_VD[ids_U], index_BL=index_N.view_as(input_ids_BL))


@dataclass(frozen=True, kw_only=True)
class StemSizes:
    """Bytes of a stem's tensors.

    Attributes:
        device: projector, whole layers, norm, `W_q`, `W_k`, which training keeps on the device.
        lm_head: `lm_head` and what belongs to it, also on the device; 0 without them.
        host: token embeddings, mapped from the file.
    """

    device: int
    lm_head: int
    host: int

    @property
    def total(self) -> int:
        """Bytes of all tensors: the size of the file without its header of a few kilobytes."""
        return self.device + self.lm_head + self.host


class Stem(nn.Module, ABC):
    """The frozen stem of a teacher; it has no trained parameters, and nothing of it is in a state dict.

    Attributes:
        table: token embeddings, on the host; `.to(device)` moves everything else.
    """

    table: EmbeddingTable

    @abstractmethod
    def vision(self, features: Any) -> Vision:
        """The teacher's encoded images for `Vision.features` of a student with the same tower, without gradient."""

    @property
    @abstractmethod
    def depth(self) -> int:
        """Number of the teacher's decoder layers, from 0, whose attention the stem gives."""

    @property
    @abstractmethod
    def attention_layer(self) -> int:
        """The teacher's first layer that has attention."""

    @abstractmethod
    def attention_layers(
        self, batch: SequenceBatch, text: TextRows, vision: Vision | None, layers: Sequence[int]
    ) -> Mapping[int, AttentionLayer]:
        """Queries and keys of the teacher's layers, without gradient.

        One pass computes all of them and ends in the last one. Layers in it run as in the live teacher, whole, over all
        positions.

        Args:
            layers: numbers below `depth` of layers that have attention, at least one; the keys of the result.
            batch: as for `VisionLanguageModel.hidden_states`.
            text: the rows of `batch.input_ids_BL`.
            vision: all images of the batch, as the teacher encodes them; None if it has none.
        """

    @abstractmethod
    def take_head(self) -> Head | None:
        """Return the output head and drop it from the stem; None if the stem has none."""


class Tower(Protocol):
    """A vision tower without the rest of its model, on the CPU."""

    def __call__(self, images: Sequence[ImageTensors]) -> Any:
        """`Vision.features` of the images of one sample, at least one, without gradient."""


class StemDesign(ABC):
    """What the stem of one teacher consists of; made from its configuration and the depth alone."""

    @property
    @abstractmethod
    def name(self) -> str:
        """Name of the teacher's architecture, for messages."""

    @property
    @abstractmethod
    def config(self) -> ModelConfig:
        """Sizes of the teacher."""

    @property
    @abstractmethod
    def depth(self) -> int:
        """`Stem.depth` of the stem: number of a layer that has attention, plus 1."""

    @property
    @abstractmethod
    def tower_settings(self) -> Mapping[str, Any]:
        """The settings that decide the tower's features and their number, plain values by name."""

    @property
    @abstractmethod
    def settings_fingerprint(self) -> Mapping[str, str]:
        """`Checkpoint.settings_fingerprint` of the teacher."""

    @property
    @abstractmethod
    def table_name(self) -> str:
        """Name of the embedding table among `shapes`."""

    @abstractmethod
    def shapes(self, *, lm_head: bool) -> dict[str, tuple[int, ...]]:
        """Name -> shape of every tensor; nothing is allocated."""

    @abstractmethod
    def described(self) -> dict[str, Any]:
        """The entries of a stem file's metadata from which the design can be made again; plain values."""

    @abstractmethod
    def read(self, checkpoint: Checkpoint, dtype: torch.dtype, *, lm_head: bool) -> dict[str, Tensor]:
        """The tensors of `shapes` from the weight files of a checkpoint; no other tensor is copied.

        Raises:
            InputError: a tensor is missing, misshapen or not finite.
        """

    @abstractmethod
    def tower_hashes(self, checkpoint: Checkpoint, dtypes: Iterable[str]) -> dict[str, str]:
        """Dtype -> hash of the vision tower in a checkpoint's weight files, with the settings of its features.

        Raises:
            InputError: the checkpoint has no tower.
        """

    @abstractmethod
    def tower_of_student(self, student: VisionLanguageModel) -> tuple[str, str] | None:
        """The dtype in which a student's tower runs, and its hash in it; None if its features are of another kind."""

    @abstractmethod
    def load_tower(self, checkpoint: Checkpoint, dtype: torch.dtype) -> Tower:
        """The vision tower of a checkpoint of this architecture; of its other weights at most the projector is read.

        Raises:
            InputError: the checkpoint has no tower.
        """

    @abstractmethod
    def build(self, weights: Mapping[str, Tensor], student: VisionLanguageModel | None = None) -> Stem:
        """The stem of tensors named as in `shapes`, on the CPU.

        Args:
            student: whose self-checks decide how batches are computed, where a family has such choices.
        """

    @abstractmethod
    def cut(self, depth: int) -> "StemDesign":
        """The stem of the same teacher with another depth; a part of this one if it is less deep."""

    def described_depth(self) -> dict[str, int]:
        """The entry `depth` of `described`; none for the smallest depth, whose files keep their bytes."""
        return {} if self.depth == smallest_depth(self.config) else {DEPTH: self.depth}

    def sizes(self, dtype: torch.dtype, *, lm_head: bool) -> StemSizes:
        """Bytes of the tensors in `dtype`."""
        without = {key: _count(shape) for key, shape in self.shapes(lm_head=False).items()}
        table = without[self.table_name]
        head = sum(map(_count, self.shapes(lm_head=True).values())) - sum(without.values()) if lm_head else 0
        each = dtype.itemsize
        return StemSizes(device=each * (sum(without.values()) - table), lm_head=each * head, host=each * table)


def smallest_depth(config: ModelConfig) -> int:
    """The depth of a stem that gives the attention of the first layer that has attention, and of no other."""
    return config.attention_layer + 1


def _count(shape: tuple[int, ...]) -> int:
    return torch.Size(shape).numel()
