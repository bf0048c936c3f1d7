"""How the distribution at supervised positions becomes stored arrays: one codec per kind of `LogitsCodec`.

To add a kind: a file with a class like `LogitsArrays`, its line here, and its settings in `codecs/settings.py`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from alignkd.storage.codecs.base import Parts, ReadRows, Shape
from alignkd.storage.codecs.settings import LogitsCodec
from alignkd.storage.errors import StoreError
from alignkd.storage.logits.full import FullLogits
from alignkd.storage.logits.hidden_states import HiddenStatesCodec
from alignkd.storage.logits.sampled import SampledLogitsCodec
from alignkd.storage.logits.truncated import TruncatedLogitsCodec


class LogitsArrays(Protocol):
    """The stored arrays of one kind of logits."""

    @property
    def value_type(self) -> type:
        """Class of `Record.logits`."""

    def arrays(self) -> list[tuple[str, str, np.dtype[Any], Shape]]:
        """Column name, group (`supervised` or `entry`), dtype and row shape of each array."""

    def encode(self, logits: Any) -> Parts:
        """Rows of each column.

        Raises:
            RecordError: values that the codec cannot hold.
            StoreError: another shape than the manifest's.
        """

    def decode(self, read: ReadRows) -> Any:
        """`Record.logits` from the rows of each column, unchecked."""

    def describe(self) -> dict[str, Any]:
        """JSON-able: `codec_id`, settings, meaning and error bound."""


@dataclass(frozen=True, kw_only=True)
class LogitSizes:
    """The teacher's sizes that determine the arrays' shapes."""

    vocab_size: int
    hidden_size: int


def logits_codec(settings: LogitsCodec, sizes: LogitSizes) -> LogitsArrays | None:
    """The codec of these settings; None if no logits are kept."""
    return None if settings.kind == "none" else _KINDS[settings.kind](settings, sizes)


def _full(settings: LogitsCodec, sizes: LogitSizes) -> LogitsArrays:
    return FullLogits(sizes.vocab_size, _dtype(settings))


def _top_k(settings: LogitsCodec, sizes: LogitSizes) -> LogitsArrays:
    assert settings.top_k is not None
    return TruncatedLogitsCodec(
        vocab_size=sizes.vocab_size,
        max_entries=settings.top_k,
        dtype=_dtype(settings),
        knows_tail=settings.tail is None,
    )


def _nucleus(settings: LogitsCodec, sizes: LogitSizes) -> LogitsArrays:
    assert settings.min_entries is not None and settings.max_entries is not None
    return TruncatedLogitsCodec(
        vocab_size=sizes.vocab_size,
        min_entries=settings.min_entries,
        max_entries=settings.max_entries,
        mass=settings.p,
        dtype=_dtype(settings),
    )


def _hidden(settings: LogitsCodec, sizes: LogitSizes) -> LogitsArrays:
    return HiddenStatesCodec(sizes.hidden_size, _dtype(settings))


def _sampled(settings: LogitsCodec, sizes: LogitSizes) -> LogitsArrays:
    assert settings.num_draws is not None
    return SampledLogitsCodec(sizes.vocab_size, settings.num_draws)


def _dtype(settings: LogitsCodec) -> str:
    assert settings.dtype is not None
    return settings.dtype


def found_kind(logits: object) -> str:
    """The kind of a record's logits, for messages."""
    return "none" if logits is None else "full" if isinstance(logits, np.ndarray) else type(logits).__name__


def check_kind(logits: object, settings: LogitsCodec, codec: LogitsArrays | None) -> None:
    """Refuse logits of another kind than the store's.

    Raises:
        StoreError: names both kinds.
    """
    if not isinstance(logits, type(None) if codec is None else codec.value_type):
        raise StoreError(
            f"logits: the record has {found_kind(logits)}, the store keeps {settings.kind}; make them agree"
        )


_KINDS: dict[str, Callable[[LogitsCodec, LogitSizes], LogitsArrays]] = {
    "full": _full,
    "topk": _top_k,
    "nucleus": _nucleus,
    "hidden": _hidden,
    "sampled": _sampled,
}
