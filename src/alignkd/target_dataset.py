"""Decoded targets as a torch dataset, for people who have a trainer of their own.

Shape letters: T input ids, k images, P vision tokens of an image (of all images where the number differs), Q text
queries that can see every image, N supervised positions, R and C attention rows and columns, Ht heads and Dt hidden
size of the teacher, K focused vision tokens, V vocabulary, E kept entries of all positions together.
"""

from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from alignkd.storage.codecs.settings import NOT_STORED
from alignkd.storage.errors import StoreError
from alignkd.storage.read.store import StoreReader
from alignkd.storage.record.distributions import HiddenStates, SampledLogits, TruncatedLogits
from alignkd.storage.record.encoded import as_float32
from alignkd.storage.record.record import Record
from alignkd.storage.schema.manifest import Manifest

_POSITIONS = ("input_ids", "labels", "vision_positions", "tqv_query_positions", "supervised_positions")
TARGETS = ("attention", "vision_top", "vision_all", "logits")


class TargetDataset(Dataset[dict[str, Any]]):
    """The records of a store with decoded targets, one dict per record.

    Every record of a store has the same keys:

    * `id` (str), `index` (int, position in the data set), `images` (list of paths), `conversations` (list of turns)
    * `input_ids`, `labels` int64 [T]: -100 where there is no label. Of a MobileVLM teacher, -200 in place of an image;
      of other models, one id for each vision token
    * `tokens_of_image` int64 [k]: vision tokens of each image
    * `vision_positions` int64 [all vision tokens], `tqv_query_positions` int64 [Q], `supervised_positions` int64 [N]:
      positions in the sequence that the teacher's decoder sees
    * `tqv_attention` float32 [k, Q, Ht, P]; of stores with other pairs `vqv_attention` [k, k * P, Ht, P] or
      `tqt_attention` [R, Ht, C]
    * `vision_embeddings` float32 [k, P, Dt], `vision_top_index` int64 [K] through all images, `vision_top_embeddings`
      float32 [K, Dt]
    * where the number of vision tokens depends on the image: `vision_embeddings` [P, Dt], attention [1, rows, Ht, P],
      for the P vision tokens of all images
    * by kind of logits: `logits` float32 [N, V] (`full`); `hidden_states` float32 [N, Dt] (`hidden`); `entry_ids` int64
      [E], `entry_offsets` int64 [N + 1] with `entry_logprobs` float32 [E] and `tail_logmass` float32 [N] (`topk`,
      `nucleus`), or with `entry_counts` int64 [E] and `entropy` float32 [N] (`sampled`)

    A text-only record has k = 0 and K = 0: empty tensors. Targets that the store does not keep have no key. Lengths
    differ from record to record, so `DataLoader` needs a `collate_fn`; `collate_fn=list` gives a list of dicts.
    The dataset can be pickled and used by data workers.

    Attributes:
        store: the reader.
    """

    def __init__(
        self, path: Path | str, *, targets: Collection[str] | None = None, allow_incomplete: bool = False
    ) -> None:
        """Open a store.

        Args:
            path: the store's folder or URL.
            targets: which targets to decode, of `attention`, `vision_top`, `vision_all` and `logits`; None decodes all
                that the store keeps.
            allow_incomplete: as of `alignkd.open_store`.

        Raises:
            StoreError: as `alignkd.open_store`; a target that does not exist, or that the store does not keep.
        """
        if isinstance(targets, str) or (unknown := sorted(set(targets or ()) - set(TARGETS))):
            wrong = targets if isinstance(targets, str) else unknown[0]
            raise StoreError(f"targets has {wrong!r}, expected some of {', '.join(TARGETS)}")
        self.store = StoreReader(path, allow_incomplete=allow_incomplete)
        kept = stored_targets(self.store.manifest)
        if missing := sorted(set(targets or ()) - kept):
            raise StoreError(
                f"store {path}: does not keep the target {missing[0]!r}, it has {', '.join(sorted(kept)) or 'none'}; "
                "leave it out, or dump another profile"
            )
        self._targets = kept if targets is None else frozenset(targets)

    def __repr__(self) -> str:
        return f"TargetDataset({str(self.store.path)!r}, {len(self)} records, {', '.join(sorted(self._targets))})"

    def __len__(self) -> int:
        return len(self.store)

    def __getitem__(self, position: int) -> dict[str, Any]:
        """The record at a position as a dict; raises as `StoreReader.__getitem__`."""
        record, manifest, wanted = self.store[position], self.store.manifest, self._targets
        sample: dict[str, Any] = {
            "id": record.id,
            "index": record.index,
            "images": list(record.images),
            "conversations": record.conversations,
            "tokens_of_image": torch.tensor(record.tokens_of_image, dtype=torch.int64),
            **{name: torch.from_numpy(getattr(record, name).astype(np.int64)) for name in _POSITIONS},
        }
        if "attention" in wanted:
            sample[f"{manifest.codecs.attention_pairs}_attention"] = _attention(record, manifest)
        if "vision_all" in wanted:
            sample["vision_embeddings"] = _vision_all(record, manifest)
        if "vision_top" in wanted:
            sample |= _vision_top(record, manifest)
        return sample | (_logits(record) if "logits" in wanted else {})


def stored_targets(manifest: Manifest) -> frozenset[str]:
    """The targets that a store keeps, of `TARGETS`."""
    codecs = manifest.codecs
    names = {"attention": codecs.attention, "vision_top": codecs.vision_top, "vision_all": codecs.vision_all}
    kept = {name for name, codec in names.items() if codec not in NOT_STORED}
    return frozenset(kept | ({"logits"} if codecs.logits.kind != "none" else set()))


def _attention(record: Record, manifest: Manifest) -> Tensor:
    shapes, pairs = manifest.shapes, manifest.codecs.attention_pairs
    if pairs == "tqt":
        return _tensor(record.attention_float32, (1, 0, shapes.num_heads, 0))[0]
    rows = len(record.tqv_query_positions if pairs == "tqv" else record.vision_positions)
    if shapes.vision_tokens is None:
        shape = (1, rows, shapes.num_heads, len(record.vision_positions))
    else:
        shape = (record.num_images, rows, shapes.num_heads, shapes.vision_tokens)
    return _tensor(record.attention_float32, shape).reshape(shape)


def _vision_all(record: Record, manifest: Manifest) -> Tensor:
    tokens, width = manifest.shapes.vision_tokens, manifest.shapes.hidden_size
    shape = (len(record.vision_positions), width) if tokens is None else (record.num_images, tokens, width)
    return _tensor(record.vision_embeddings_float32, shape).reshape(shape)


def _vision_top(record: Record, manifest: Manifest) -> dict[str, Tensor]:
    index = record.vision_top_index
    return {
        "vision_top_index": torch.zeros(0, dtype=torch.int64) if index is None else _integers(index),
        "vision_top_embeddings": _tensor(record.vision_top_embeddings_float32, (0, manifest.shapes.hidden_size)),
    }


def _logits(record: Record) -> dict[str, Tensor]:
    logits = record.logits
    if logits is None:
        return {}
    if isinstance(logits, np.ndarray):
        return {"logits": _floats(logits)}
    if isinstance(logits, HiddenStates):
        return {"hidden_states": _floats(as_float32(logits.states))}
    entries = {"entry_ids": _integers(logits.ids), "entry_offsets": _integers(logits.offsets)}
    if isinstance(logits, SampledLogits):
        return {**entries, "entry_counts": _integers(logits.counts), "entropy": _floats(logits.entropy)}
    assert isinstance(logits, TruncatedLogits)
    known = {} if logits.tail_logmass is None else {"tail_logmass": _floats(logits.tail_logmass)}
    return {**entries, "entry_logprobs": _floats(logits.logprobs), **known}


def _tensor(values: NDArray[Any] | None, shape_if_absent: tuple[int, ...]) -> Tensor:
    return torch.zeros(shape_if_absent) if values is None else _floats(values)


def _floats(values: NDArray[Any]) -> Tensor:
    return torch.from_numpy(values.astype(np.float32))


def _integers(values: NDArray[Any]) -> Tensor:
    return torch.from_numpy(values.astype(np.int64))
