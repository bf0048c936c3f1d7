"""What one batch of a teacher needs: the memory that is alive during a pass, and the load that a plan computes with."""

import weakref
from collections.abc import Iterable
from itertools import chain
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from alignkd.pipeline.plan.memory.loads import LOGIT_BYTES, TeacherLoad
from alignkd.teacher_dump.preparation import Prepared
from alignkd.teacher_dump.settings.store import StoreConfig
from alignkd.teacher_dump.targets.capture import Captured


class LiveBytes(TorchDispatchMode):
    """Bytes of the storages that operations made and that are still alive; `peak` is the most of them.

    Args:
        others: tensors that were there before; a view of one is no new memory.
    """

    def __init__(self, others: Iterable[Tensor]) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known = {tensor.untyped_storage()._cdata for tensor in others}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor):
                self._add(tensor.untyped_storage())
        return out

    def _add(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._known:
            return
        self._known.add(key)
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._drop, key, size)

    def _drop(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size


def stored_bytes(captured: list[Captured]) -> int:
    """Bytes of the encoded targets of a batch."""
    arrays = {
        id(held): held
        for one in captured
        for held in (one.attention, one.vision_top, *one.vision, *chain(*one.attention_layers.values()))
    }
    arrays[id(captured[0].logits.arrays)] = captured[0].logits.arrays
    return sum(part.nbytes for held in arrays.values() if held is not None for part in held.wait().values())


def load_of(samples: list[Prepared], store: StoreConfig, dtype: str, stored: int, *, num_layers: int) -> TeacherLoad:
    """The load of one batch of these samples, for a teacher with so many layers."""
    positions = [sample.example.positions for sample in samples]
    rows = [sum(len(at.attention_rows(pairs)) for at in positions) for pairs in store.computed_pairs()]
    return TeacherLoad(
        dtype=dtype,
        quantization="none",
        tokens=sum(at.length for at in positions),
        longest=max(at.length for at in positions),
        images=sum(at.num_images for at in positions),
        supervised=sum(len(at.supervised_positions) for at in positions),
        queries=max(rows, default=0),
        stored=stored,
        logit_bytes=LOGIT_BYTES[store.logits.kind],
        watched=store.most_watched_layers(num_layers),
        vision=sum(len(at.vision_positions) for at in positions),
        largest=max(len(at.vision_positions) for at in positions),
    )
