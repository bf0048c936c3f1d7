"""How a target becomes stored arrays. One file per codec; `get_codec` finds one by its manifest name."""

from alignkd.storage.codecs.base import Codec
from alignkd.storage.codecs.bfloat16 import Bfloat16
from alignkd.storage.codecs.float16 import Float16
from alignkd.storage.codecs.float32 import Float32
from alignkd.storage.codecs.int8_channel import Int8Channel
from alignkd.storage.codecs.int8_group import Int8Group
from alignkd.storage.codecs.sqrt_u8 import SqrtU8
from alignkd.storage.errors import StoreError

__all__ = ["Codec", "codec_names", "get_codec"]

_CODECS: dict[str, Codec] = {
    codec.name: codec for codec in (Float32(), Float16(), Bfloat16(), SqrtU8(), Int8Channel(), Int8Group())
}


def get_codec(name: str) -> Codec:
    """The codec of that name.

    Raises:
        StoreError: there is none.
    """
    if name not in _CODECS:
        raise StoreError(f"codec is {name!r}, expected one of {', '.join(_CODECS)}")
    return _CODECS[name]


def codec_names(target: str) -> tuple[str, ...]:
    """The codecs that may store a target (see `Codec.targets`)."""
    return tuple(name for name, codec in _CODECS.items() if target in codec.targets)
