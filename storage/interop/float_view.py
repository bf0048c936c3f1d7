"""A zarr shard whose targets read as floats, whichever zarr library opened it.

The library is the caller's: this module imports none. It uses `group[name]`, `group.attrs` and `array[rows]` only.
"""

from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from alignkd.storage.codecs import codec_names, get_codec
from alignkd.storage.codecs.base import Codec, Parts, part_column

_KINDS = ("attention", "hidden", "vision_all", "unit")
_FLOAT_CODECS = frozenset(name for target in _KINDS for name in codec_names(target))


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
        # rows of schema 2 are whole images, so that each row has its own scale
        self._shared = {part for part in self._codec.shared_parts if len(self._arrays[part].shape) == len(self.shape)}
        self._group, self._name = group, name

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
        values = self._rows(rows) if self._shared else self._codec.decode(self._parts(rows))
        return values[others if isinstance(rows, int | np.integer) else (slice(None), *others)]

    def _parts(self, rows: Any) -> Parts:
        return {part: np.asarray(array[rows]) for part, array in self._arrays.items() if part not in self._shared}

    def _rows(self, rows: Any) -> NDArray[np.float32]:
        """Rows of one vision token each, decoded with the scale of their image or record."""
        owners = self._owners[rows]
        parts = {part: values[..., None, :] for part, values in self._parts(rows).items()}
        first, last = int(owners.min(initial=len(self))), int(owners.max(initial=0))
        shared = {part: np.asarray(self._arrays[part][first : last + 1])[owners - first] for part in self._shared}
        return self._codec.decode(parts | shared)[..., 0, :]

    @cached_property
    def _owners(self) -> NDArray[np.int64]:
        """The row of the shared parts that each row has, int64 [rows]."""
        offsets, records = (self._group[name] for name in ("offsets", "records"))
        groups, fields = dict(offsets.attrs)["labels"], dict(records.attrs)["labels"]
        ends = np.asarray(offsets[:])
        if self._name != "vision_embeddings":  # one row for each record that has any
            counts = np.diff(ends[:, groups.index("top")])
            return _repeated(counts[counts > 0])
        source = np.asarray(records[:])[:, fields.index("image_record")]
        brings = np.flatnonzero(source == np.arange(len(source)))
        shown, tokens = ends[:, groups.index("shown")], np.asarray(self._group["image_tokens"][:])
        return _repeated(
            np.concatenate([np.empty(0, tokens.dtype), *(tokens[shown[n] : shown[n + 1]] for n in brings)])
        )

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


def _repeated(counts: NDArray[Any]) -> NDArray[np.int64]:
    return np.repeat(np.arange(len(counts)), counts)


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
