"""How float targets become stored arrays: one file per codec, which `CODECS` lists by their names.

A codec has a second half in torch in each phase: an encoder in `teacher_dump/targets/device_codecs.py` and a decoder in
`student_train/data/decode.py`. storage does not import torch, so these modules compare their tables with `CODECS` when
they are imported (`check_all_present`). A codec without its torch side is an error at start, not amid a dump.
"""

from collections.abc import Iterable

from alignkd.storage.codecs.base import Codec
from alignkd.storage.codecs.bfloat16 import Bfloat16
from alignkd.storage.codecs.float16 import Float16
from alignkd.storage.codecs.float32 import Float32
from alignkd.storage.codecs.int8_channel import Int8Channel
from alignkd.storage.codecs.int8_group import Int8Group
from alignkd.storage.codecs.int8_unit import Int8Unit
from alignkd.storage.codecs.sqrt_u8 import SqrtU8
from alignkd.storage.errors import StoreError

__all__ = ["CODECS", "Codec", "check_all_present", "check_rows_are_separate", "codec_names", "get_codec"]

CODECS: dict[str, Codec] = {
    codec.name: codec for codec in (Float32(), Float16(), Bfloat16(), SqrtU8(), Int8Channel(), Int8Group(), Int8Unit())
}


def check_rows_are_separate(codecs: Iterable[Codec]) -> None:
    """Refuse a codec of attention with parts that all rows share: training slices every part by rows.

    Raises:
        ImportError: naming the codec and its parts.
    """
    for codec in codecs:
        if codec.shared_parts and "attention" in codec.targets:
            shared = ", ".join(sorted(codec.shared_parts))
            raise ImportError(f"codec {codec.name!r} of attention shares {shared} between rows; store it for each row")


check_rows_are_separate(CODECS.values())


def get_codec(name: str) -> Codec:
    """The codec of that name.

    Raises:
        StoreError: there is no such codec.
    """
    if name not in CODECS:
        raise StoreError(f"codec is {name!r}, expected one of {', '.join(CODECS)}")
    return CODECS[name]


def codec_names(target: str) -> tuple[str, ...]:
    """The codecs that may store a target (see `Codec.targets`)."""
    return tuple(name for name, codec in CODECS.items() if target in codec.targets)


def check_all_present(names: Iterable[str], place: str) -> None:
    """Refuse a table that does not have exactly the codecs of `CODECS`; called when the table's module is imported.

    Args:
        names: the codecs in the table.
        place: file and name of the table.

    Raises:
        ImportError: naming the codec and the place.
    """
    found = set(names)
    if missing := sorted(CODECS.keys() - found):
        raise ImportError(f"codec {missing[0]!r} of storage/codecs is missing in {place}; add it there")
    if unknown := sorted(found - CODECS.keys()):
        raise ImportError(f"codec {unknown[0]!r} in {place} is missing in storage/codecs/__init__.py; add it there")
