"""Converts between a record's field and stored parts; a field that is encoded already keeps its bytes."""

from alignkd.storage.codecs import get_codec
from alignkd.storage.codecs.base import Parts
from alignkd.storage.errors import StoreError, naming
from alignkd.storage.record.encoded import EncodedArray, FloatArray


def encoded(codec: str, field: str, values: FloatArray | EncodedArray) -> Parts:
    """Stored parts of a field.

    Raises:
        StoreError: the values are encoded by another codec; encoding them again would silently round twice.
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
    """The field in the form that a record holds: the floats of a plain codec, otherwise the parts."""
    return parts[""] if get_codec(codec).plain else EncodedArray(codec, parts)
