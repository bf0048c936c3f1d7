"""Between a record's field and stored parts: what is encoded already is stored as it is."""

from alignkd.storage.codecs import get_codec
from alignkd.storage.codecs.base import Parts
from alignkd.storage.errors import StoreError, naming
from alignkd.storage.record.encoded import EncodedArray, FloatArray


def encoded(codec: str, field: str, values: FloatArray | EncodedArray) -> Parts:
    """Stored parts of a field.

    Raises:
        StoreError: the values are encoded by another codec; encoding twice would lose twice without a word.
        RecordError: the codec cannot hold the values.
    """
    if isinstance(values, EncodedArray):
        if values.codec != codec:
            raise StoreError(
                f"{field} is encoded as {values.codec}, the store keeps {codec}; decode it first if a second rounding "
                "is acceptable, or give it in floats"
            )
        return values.parts
    with naming(field):
        return get_codec(codec).encode(values)


def decoded(codec: str, parts: Parts) -> FloatArray | EncodedArray:
    """The field as a record holds it: floats of a plain codec, else the parts as they are."""
    return parts[""] if get_codec(codec).plain else EncodedArray(codec, parts)
