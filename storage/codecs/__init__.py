"""How a target becomes stored arrays. One file per codec; `get_codec` finds one by its manifest name."""

from storage.codecs.base import Codec
from storage.codecs.float16 import Float16
from storage.codecs.float32 import Float32
from storage.errors import StoreError

__all__ = ["Codec", "get_codec"]

_CODECS: dict[str, Codec] = {codec.name: codec for codec in (Float16(), Float32())}


def get_codec(name: str) -> Codec:
    """The codec of that name.

    Raises:
        StoreError: there is none.
    """
    if name not in _CODECS:
        raise StoreError(f"codec is {name!r}, expected one of {', '.join(sorted(_CODECS))}")
    return _CODECS[name]
