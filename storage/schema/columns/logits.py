"""The arrays of a store's logits."""

from alignkd.storage.codecs.settings import LogitsCodec
from alignkd.storage.logits.registry import LogitsArrays, LogitSizes, logits_codec
from alignkd.storage.schema.columns.column import Column
from alignkd.storage.schema.manifest import Manifest


def logits_codec_of(manifest: Manifest) -> LogitsArrays | None:
    """The codec of the store's logits; None if it keeps no logits."""
    return codec_of_logits(manifest.codecs.logits, manifest)


def logit_columns(manifest: Manifest) -> list[Column]:
    """The columns of the store's logits."""
    codec = logits_codec_of(manifest)
    return [] if codec is None else [Column(*array) for array in codec.arrays()]


def codec_of_logits(settings: LogitsCodec, manifest: Manifest) -> LogitsArrays | None:
    """The codec of these settings for the sizes of the store's teacher; None if they keep no logits."""
    shapes = manifest.shapes
    return logits_codec(settings, LogitSizes(vocab_size=shapes.vocab_size, hidden_size=shapes.hidden_size))
