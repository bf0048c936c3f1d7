"""Compares two records of the same sample field by field, for any codecs."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from alignkd.storage.read.lm_head import LmHead
from alignkd.storage.read.logprobs import Answers, answers, distribution_of
from alignkd.storage.record.distributions import HiddenStates, SampledLogits, TruncatedLogits
from alignkd.storage.record.encoded import EncodedArray, as_float32, error_bound
from alignkd.storage.record.record import Logits, Record, Target

# error of log-softmax with logits computed in float32
ARITHMETIC = 1e-3

Values = NDArray[np.float32] | NDArray[np.float64]

EXACT_FIELDS = (
    "key",
    "id",
    "index",
    "conversations",
    "images",
    "image_sha256",
    "image_bytes",
    "input_ids",
    "labels",
    "tokens_of_image",
    "vision_positions",
    "tqv_query_positions",
    "supervised_positions",
    "vision_top_index",
)
TARGET_FIELDS = ("attention", "vision_top_embeddings")


@dataclass(frozen=True, kw_only=True)
class FieldResult:
    """Comparison of one field of two records.

    Attributes:
        field: its name; `logits.logprobs` and the like for the parts of logits.
        differs: whether the values differ.
        max_abs: largest absolute difference of floats; None for other values, or if they cannot be compared.
        squared_error, squared_norm: sums of squares of the differences and of A's values.
        beyond: whether the difference exceeds the codecs' error bounds; with equal codecs any difference does.
        note: why the values cannot be compared, or how they differ.
    """

    field: str
    differs: bool
    max_abs: float | None = None
    squared_error: float = 0.0
    squared_norm: float = 0.0
    beyond: bool = False
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class LmHeads:
    """The lm_head of each side, if the store has one: computes logits from hidden states."""

    a: LmHead | None = None
    b: LmHead | None = None


def compare_records(a: Record, b: Record, heads: LmHeads, vocab_size: int) -> Iterator[FieldResult]:
    """Every field that at least one record has."""
    for name in EXACT_FIELDS:
        yield _exact(name, getattr(a, name), getattr(b, name))
    for name in TARGET_FIELDS:
        first, second = getattr(a, name), getattr(b, name)
        if first is not None and second is not None:
            yield _targets(name, first, second)
        elif first is not None or second is not None:
            yield _one_sided(name, first)
    yield from _of_images("vision_embeddings", a.vision_embeddings, b.vision_embeddings)
    yield from _logits("logits", a.logits, b.logits, heads, vocab_size)
    for name in sorted(a.more.keys() | b.more.keys()):
        yield from _further(f"more.{name}", a.more.get(name), b.more.get(name), heads, vocab_size)


def _of_images(name: str, a: tuple[Target, ...] | None, b: tuple[Target, ...] | None) -> Iterator[FieldResult]:
    """The targets of all images as one field."""
    if a is None and b is None:
        return
    if a is None or b is None:
        yield _one_sided(name, a)
    elif (of_a := [target.shape for target in a]) != (of_b := [target.shape for target in b]):
        yield FieldResult(field=name, differs=True, beyond=True, note=f"shapes {of_a} and {of_b}")
    else:
        yield _joined([_targets(name, first, second) for first, second in zip(a, b, strict=True)])


def _joined(parts: list[FieldResult]) -> FieldResult:
    """The results of the parts of a field as one."""
    return FieldResult(
        field=parts[0].field,
        differs=any(part.differs for part in parts),
        max_abs=max((part.max_abs for part in parts if part.max_abs is not None), default=None),
        squared_error=sum(part.squared_error for part in parts),
        squared_norm=sum(part.squared_norm for part in parts),
        beyond=any(part.beyond for part in parts),
        note=next((part.note for part in parts if part.note), ""),
    )


def _further(
    name: str, a: Target | Logits | None, b: Target | Logits | None, heads: LmHeads, vocab_size: int
) -> Iterator[FieldResult]:
    plain = EncodedArray | np.ndarray
    if isinstance(a, plain) and isinstance(b, plain):
        yield _targets(name, a, b)
    elif isinstance(a, EncodedArray) or isinstance(b, EncodedArray):
        yield _one_sided(name, a)
    else:
        yield from _logits(name, a, b, heads, vocab_size)


def _exact(name: str, a: Any, b: Any) -> FieldResult:
    same = np.array_equal(a, b) if isinstance(a, np.ndarray) and isinstance(b, np.ndarray) else a is b or _equal(a, b)
    note = "" if same or (a is None) == (b is None) else f"only in {'B' if a is None else 'A'}"
    return FieldResult(field=name, differs=not same, beyond=not same, note=note)


def _equal(a: Any, b: Any) -> bool:
    return not isinstance(a, np.ndarray) and not isinstance(b, np.ndarray) and bool(a == b)


def _one_sided(name: str, a: Any) -> FieldResult:
    return FieldResult(field=name, differs=True, beyond=True, note=f"only in {'B' if a is None else 'A'}")


def _codec(target: Target) -> str:
    return target.codec if isinstance(target, EncodedArray) else str(target.dtype)


def _targets(name: str, a: Target, b: Target) -> FieldResult:
    if a.shape != b.shape:
        return FieldResult(field=name, differs=True, beyond=True, note=f"shape {a.shape} and {b.shape}")
    if isinstance(a, EncodedArray) and isinstance(b, EncodedArray) and a.same_as(b):
        return _floats(name, as_float32(a), as_float32(a), None)
    bound = None if _codec(a) == _codec(b) else error_bound(a) + error_bound(b)
    result = _floats(name, as_float32(a), as_float32(b), bound)
    if isinstance(a, EncodedArray) and isinstance(b, EncodedArray) and a.codec == b.codec and not result.differs:
        # stores of the same codec are compared by their bytes, and equal values may have different ones
        return FieldResult(
            field=name, differs=True, max_abs=0.0, beyond=True, note="stored parts differ, values do not"
        )
    return result


def _floats(name: str, a: Values, b: Values, bound: Values | None) -> FieldResult:
    """-inf, the mass of an empty tail, equals itself."""
    with np.errstate(invalid="ignore"):
        error = np.where(a == b, 0.0, np.abs(a.astype(np.float64) - b))
    allowed = 0.0 if bound is None else bound
    norm = np.where(np.isfinite(a), a, 0.0).astype(np.float64)
    return FieldResult(
        field=name,
        differs=bool((error != 0).any()),
        max_abs=float(error.max(initial=0.0)),
        squared_error=float((error**2).sum()),
        squared_norm=float((norm**2).sum()),
        beyond=bool((~(error <= allowed)).any()),
    )


def _logits(name: str, a: Logits | None, b: Logits | None, heads: LmHeads, vocab_size: int) -> Iterator[FieldResult]:
    if a is None and b is None:
        return
    if a is None or b is None:
        yield _one_sided(name, a)
    elif isinstance(a, HiddenStates) and isinstance(b, HiddenStates):
        yield _targets(f"{name}.hidden_states", a.states, b.states)
    elif isinstance(a, np.ndarray) and isinstance(b, np.ndarray):
        yield _targets(name, a, b)
    elif isinstance(a, SampledLogits) and isinstance(b, SampledLogits):
        for part in ("ids", "counts", "offsets"):
            yield _exact(f"{name}.{part}", getattr(a, part), getattr(b, part))
        yield _floats(f"{name}.entropy", a.entropy, b.entropy, None)
    elif isinstance(a, TruncatedLogits) and isinstance(b, TruncatedLogits) and _same_entries(a, b):
        yield _targets(f"{name}.logprobs", a.logprobs, b.logprobs)
        if a.tail_logmass is not None and b.tail_logmass is not None:
            yield _floats(f"{name}.tail_logmass", a.tail_logmass, b.tail_logmass, None)
    else:
        yield _common_logprobs(name, a, b, heads, vocab_size)


def _same_entries(a: TruncatedLogits, b: TruncatedLogits) -> bool:
    same_tail = (a.tail_logmass is None) == (b.tail_logmass is None)
    return bool(same_tail and np.array_equal(a.ids, b.ids) and np.array_equal(a.offsets, b.offsets))


def _common_logprobs(name: str, a: Logits, b: Logits, heads: LmHeads, vocab_size: int) -> FieldResult:
    """Logits of different kinds, compared by the log-probabilities of the tokens that both keep."""
    sides = [_Side.of(a, heads.a), _Side.of(b, heads.b)]
    for which, side, logits in zip("AB", sides, (a, b), strict=True):
        if side is None:
            why = "draws have no probabilities" if isinstance(logits, SampledLogits) else "hidden states need lm_head"
            return FieldResult(field=name, differs=True, beyond=True, note=f"cannot be compared: {why} in {which}")
    first, second = sides
    assert first is not None and second is not None
    if first.num_positions != second.num_positions:
        note = f"{first.num_positions} and {second.num_positions} positions"
        return FieldResult(field=name, differs=True, beyond=True, note=note)
    positions, ids = (second if first.entries() is None else first).entries() or _everything(first, vocab_size)
    ours, theirs = first.answers(positions, ids, vocab_size), second.answers(positions, ids, vocab_size)
    both = ours.kept & theirs.kept
    bound = first.bound(positions, ids, ours) + second.bound(positions, ids, theirs) + ARITHMETIC
    result = _floats(name, ours.logprobs[both], theirs.logprobs[both], bound[both])
    note = f"log-probabilities of {int(both.sum())} tokens that both keep"
    return FieldResult(**{**result.__dict__, "note": note})


def _everything(side: "_Side", vocab_size: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    places = np.arange(side.num_positions * vocab_size, dtype=np.int64)
    return places // vocab_size, places % vocab_size


class _Side:
    """One store's distribution: full logits [N, V], perhaps computed from hidden states, or kept entries."""

    def __init__(self, found: NDArray[Any] | TruncatedLogits, bound: NDArray[np.float32] | None) -> None:
        self.found, self._bound = found, bound

    @classmethod
    def of(cls, logits: Logits, head: LmHead | None) -> "_Side | None":
        found = distribution_of(logits, head)
        if found is None or isinstance(found, SampledLogits):
            return None
        if isinstance(found, TruncatedLogits):
            return cls(found, None)
        if isinstance(logits, HiddenStates) and head is not None:
            return cls(found, head.error_bound(error_bound(logits.states)))
        assert isinstance(logits, np.ndarray)
        return cls(found, error_bound(logits))

    @property
    def num_positions(self) -> int:
        return self.found.num_positions if isinstance(self.found, TruncatedLogits) else len(self.found)

    def entries(self) -> tuple[NDArray[np.int64], NDArray[np.int64]] | None:
        """Position and id of each kept entry; None if all are kept."""
        if not isinstance(self.found, TruncatedLogits):
            return None
        positions = np.repeat(np.arange(self.num_positions, dtype=np.int64), np.diff(self.found.offsets))
        return positions, self.found.ids.astype(np.int64)

    def answers(self, positions: NDArray[np.int64], ids: NDArray[np.int64], vocab_size: int) -> Any:
        return answers(self.found, positions, ids, vocab_size)

    def bound(self, positions: NDArray[np.int64], ids: NDArray[np.int64], found: Answers) -> NDArray[np.float64]:
        """Error bounds: the codec's for kept entries; for logits their own plus, for the normaliser, the largest of the
        position."""
        if isinstance(self.found, TruncatedLogits):
            rounded: Any = found.logprobs.astype(self.found.logprobs.dtype)
            return error_bound(rounded).astype(np.float64)
        assert self._bound is not None
        bound: NDArray[np.float64] = (self._bound[positions, ids] + self._bound.max(1)[positions]).astype(np.float64)
        return bound
