"""Many named tensors as several safetensors files of bounded size, written and read one at a time.

safetensors writes a file from tensors that are all in memory. Gathered from all ranks, one kind of a checkpoint's
tensors is as large as all trained weights in float32; in files of PART_BYTES it is never there as a whole.
"""

from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self

from torch import Tensor

from alignkd.vlm.weights.tensor_file import open_tensors

PART_BYTES = 256 << 20


def in_parts(kind: str, tensors: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """File name -> tensors of at most PART_BYTES, or one that is larger."""
    for number, part in enumerate(_of_some_size(tensors)):
        yield f"{kind}-{number:03}.safetensors", part


class Parts:
    """All files of one kind in a folder, open as long as the block lasts; tensors are mapped from them."""

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

    def tensor(self, name: str) -> Tensor:
        """A tensor by its name."""
        found: Tensor = self._file_of[name].get_tensor(name)
        return found


def _of_some_size(tensors: Iterable[tuple[str, Tensor]]) -> Iterator[dict[str, Tensor]]:
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
