"""Counts the memory that torch allocates on a host, where the allocator reports no figures."""

import weakref
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveBytes(TorchDispatchMode):
    """Dispatch mode that counts the bytes of all living storages made inside it, and their peak."""

    def __init__(self) -> None:
        super().__init__()
        self.now, self.peak, self._known = 0, 0, set[int]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for value in tree_leaves((args, kwargs)):
            self._note(value, counted=False)  # storages made before
        result = func(*args, **(kwargs or {}))
        for value in tree_leaves(result):
            self._note(value, counted=True)
        self.peak = max(self.peak, self.now)
        return result

    def _note(self, value: Any, *, counted: bool) -> None:
        if not isinstance(value, Tensor) or (storage := value.untyped_storage())._cdata in self._known:
            return
        size = storage.nbytes() if counted else 0
        self._known.add(storage._cdata)
        self.now += size
        weakref.finalize(storage, self._forget, storage._cdata, size)

    def _forget(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size
