"""Many named tensors as several safetensors files of bounded size, written and read one at a time.

safetensors writes a file from tensors that are all in memory. The tensors of one kind, gathered from all ranks, are as
large as all trained weights in float32. In files of PART_BYTES only a part of them is in memory at a time.
"""

from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self

from torch import Tensor

from alignkd.vlm.weights.tensor_file import open_tensors

PART_BYTES = 256 << 20


def in_parts(kind: str, tensors: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Pairs of file name and tensors: together at most PART_BYTES, or a single larger one."""
    for number, part in enumerate(_bounded(tensors)):
        yield f"{kind}-{number:03}.safetensors", part


class Parts:
    """All files of one kind in a folder, open while the block lasts; tensors are mapped from them."""

    def __init__(self, folder: Path, kind: str) -> None:
        # Version 0.1 wrote one file per kind.
        self._paths = [*folder.glob(f"{kind}.safetensors"), *folder.glob(f"{kind}-*.safetensors")]
        self._stack, self._file_of = ExitStack(), dict[str, Any]()

    def __enter__(self) -> Self:
        for path in self._paths:
            file = self._stack.enter_context(open_tensors(path))
            self._file_of |= dict.fromkeys(file.keys(), file)
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    @property
    def names(self) -> set[str]:
        """The names of all tensors."""
        return set(self._file_of)

    def tensor(self, name: str) -> Tensor:
        """The tensor of this name."""
        found: Tensor = self._file_of[name].get_tensor(name)
        return found


def _bounded(tensors: Iterable[tuple[str, Tensor]]) -> Iterator[dict[str, Tensor]]:
    part: dict[str, Tensor] = {}
    size = 0
    for name, tensor in tensors:
        if part and size + tensor.nbytes > PART_BYTES:
            yield part
            part, size = {}, 0
        part[name] = tensor
        size += tensor.nbytes
    if part:
        yield part
