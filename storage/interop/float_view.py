"""A zarr shard whose targets read as floats, whichever zarr library opened it.

The library is the caller's: this module imports none. It uses `group[name]`, `group.attrs` and `array[rows]` only.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from alignkd.storage.codecs import codec_names, get_codec
from alignkd.storage.codecs.base import Codec, part_column

_FLOAT_CODECS = frozenset(name for target in ("attention", "hidden", "vision_all") for name in codec_names(target))


class FloatTarget:
    """A stored target of a zarr group that is decoded when it is indexed; results are float32.

    Attributes:
        codec: name of the target's codec.
        shape: shape of the whole array, rows first.
    """

    dtype = np.dtype(np.float32)

    def __init__(self, group: Any, name: str, codec: str) -> None:
        self.codec = codec
        self._codec: Codec = get_codec(codec)
        self._arrays = {part: group[part_column(name, part)] for part in self._codec.part_names}
        self.shape: tuple[int, ...] = tuple(self._arrays[""].shape)

    def __len__(self) -> int:
        return self.shape[0]

    def __repr__(self) -> str:
        return f"FloatTarget({self.codec!r}, float32{list(self.shape)})"

    def __getitem__(self, key: Any) -> NDArray[np.float32]:
        """Values by the indices that the array takes; only the rows that the first index names are read."""
        key = key if isinstance(key, tuple) else (key,)
        if not key or key[0] is Ellipsis:
            whole: NDArray[np.float32] = self[:][key]
            return whole
        rows, others = key[0], key[1:]
        values = self._codec.decode({part: np.asarray(array[rows]) for part, array in self._arrays.items()})
        return values[others if isinstance(rows, int | np.integer) else (slice(None), *others)]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        return np.asarray(self[:], dtype)


class FloatView(Mapping[str, Any]):
    """The arrays of a group by name: targets as `FloatTarget`, other arrays as the zarr library gives them.

    Arrays that only serve to decode a target (`attention_scale`) are left out.
    """

    def __init__(self, group: Any) -> None:
        self._group = group
        self._codecs = {name: codec for name in _names(group) if (codec := _float_codec(group[name]))}
        self._scales = {
            part_column(name, part)
            for name, codec in self._codecs.items()
            for part in get_codec(codec).part_names
            if part
        }

    def __getitem__(self, name: str) -> Any:
        if name in self._codecs:
            return FloatTarget(self._group, name, self._codecs[name])
        return self._group[name]

    def __iter__(self) -> Iterator[str]:
        return (name for name in _names(self._group) if name not in self._scales)

    def __len__(self) -> int:
        return sum(1 for _ in self)


def float_view(group: Any) -> FloatView:
    """The arrays of a zarr shard, with targets decoded to float32 when they are indexed.

    Args:
        group: `zarr.open_group("store/shards/00000000", mode="r")`, or a group of another library with the same
            interface.
    """
    return FloatView(group)


def _names(group: Any) -> list[str]:
    return sorted(group)


def _float_codec(array: Any) -> str | None:
    """The codec of a target whose values are floats; None for other arrays."""
    codec = dict(array.attrs).get("target", {}).get("codec_id")
    return codec if codec in _FLOAT_CODECS else None
