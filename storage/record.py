"""One sample's cached targets, as everybody outside `storage` sees them.

Shape letters: T input_ids before splicing, L sequence after splicing, P vision tokens, Q text queries that
can see the image, N supervised positions, E kept entries of all N positions, R and C attention rows and
columns, Ht heads of the teacher, Dt its hidden size, V vocabulary, K selected vision tokens (16).
"""

import re
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from storage.errors import RecordError

IMAGE_TOKEN = -200
IGNORED_LABEL = -100

T = TypeVar("T")
FloatArray = NDArray[np.float16] | NDArray[np.float32]
FLOATS = (np.float16, np.float32)
# float16 log-probs near -16 are 1/128 apart, so exact masses come back up to about 1 % off
MASS_TOLERANCE = 0.02


@dataclass(frozen=True, kw_only=True, eq=False)
class TruncatedLogits:
    """Kept entries of the teacher's distribution at N supervised positions, in CSR form.

    Attributes:
        ids: token ids, uint16 or uint32 [E].
        logprobs: natural log, normalised with the TRUE log-sum-exp over V; float16 or float32 [E].
        offsets: entries of position n are `offsets[n]:offsets[n + 1]`; int64 [N + 1].
        tail_logmass: natural log of the mass outside the entries, -inf where nothing is; float32 [N].
    """

    ids: NDArray[np.uint16] | NDArray[np.uint32]
    logprobs: FloatArray
    offsets: NDArray[np.int64]
    tail_logmass: NDArray[np.float32]

    def __post_init__(self) -> None:
        """Check shapes, dtypes, and that entries and tail together hold the whole mass.

        Raises:
            RecordError: naming the field and both values.
        """
        _check_array("ids", self.ids, (np.uint16, np.uint32), 1)
        _check_array("logprobs", self.logprobs, FLOATS, 1)
        _check_array("offsets", self.offsets, (np.int64,), 1)
        _check_array("tail_logmass", self.tail_logmass, (np.float32,), 1)
        if len(self.offsets) != len(self.tail_logmass) + 1:
            raise RecordError(
                f"offsets has shape {self.offsets.shape}, tail_logmass {self.tail_logmass.shape}: "
                "offsets needs one more"
            )
        entries = (int(self.offsets[-1]), len(self.ids), len(self.logprobs))
        if len(set(entries)) != 1 or self.offsets[0] != 0 or (np.diff(self.offsets) < 0).any():
            raise RecordError(
                f"offsets must rise from 0 to the number of entries: they end at {entries[0]}, "
                f"ids has {entries[1]}, logprobs {entries[2]}"
            )
        _check_finite("logprobs", self.logprobs)
        self._check_mass()

    @classmethod
    def trusted(cls, fields: dict[str, Any]) -> "TruncatedLogits":
        """Entries that a checksum already vouches for: no checks, for the reading path."""
        return _unchecked(cls, fields)

    def _check_mass(self) -> None:
        cumulative = np.concatenate([[0.0], np.cumsum(np.exp(self.logprobs.astype(np.float64)))])
        tail = np.exp(self.tail_logmass.astype(np.float64))
        mass = cumulative[self.offsets[1:]] - cumulative[self.offsets[:-1]] + tail
        wrong = np.flatnonzero(~(np.abs(mass - 1.0) <= MASS_TOLERANCE))
        if wrong.size:
            raise RecordError(
                f"logits at supervised position {wrong[0]} hold mass {mass[wrong[0]]:.4f} with the tail, "
                "expected 1: normalise with the log-sum-exp over the whole vocabulary"
            )


@dataclass(frozen=True, kw_only=True, eq=False)
class Record:
    """All that the student needs of one sample. Checked once, here, where data enters.

    Attributes:
        key: content hash of conversation, image bytes and template; 64 lower-case hex digits.
        id: the user's id; need not be unique.
        index: position of the sample in the data set.
        conversations: turns, each `{"from": "human" | "gpt", "value": text}`.
        image: path relative to the image folder; None for a text-only sample.
        image_sha256: of the image file's bytes; None exactly where `image` is.
        input_ids: int32 [T], -200 where the image is.
        labels: int32 [T], -100 where not supervised.
        vision_positions: int32 [P], or [0] for text only; like all positions in the spliced sequence.
        tqv_query_positions: int32 [Q], text positions after the last vision token.
        supervised_positions: int32 [N], positions whose NEXT token has a label.
        attention: probabilities [R, Ht, C] of the first decoder layer; `tqv` has R = Q and C = P.
        vision_top_index: uint16 [K], the vision tokens with the highest focus score.
        vision_top_embeddings: projector output at those tokens [K, Dt].
        vision_embeddings: projector output [P, Dt].
        logits: unnormalised logits [N, V], or the kept entries of the distribution.

    Targets are float16 or float32; a target the store does not keep, or a text-only sample lacks, is None.
    """

    key: str
    id: str
    index: int
    conversations: list[dict[str, str]]
    image: str | None
    image_sha256: str | None
    input_ids: NDArray[np.int32]
    labels: NDArray[np.int32]
    vision_positions: NDArray[np.int32]
    tqv_query_positions: NDArray[np.int32]
    supervised_positions: NDArray[np.int32]
    attention: FloatArray | None = None
    vision_top_index: NDArray[np.uint16] | None = None
    vision_top_embeddings: FloatArray | None = None
    vision_embeddings: FloatArray | None = None
    logits: FloatArray | TruncatedLogits | None = None

    def __post_init__(self) -> None:
        """Check every field against the others.

        Raises:
            RecordError: naming the field and both values.
        """
        self._check_text()
        self._check_sequence()
        self._check_attention()
        self._check_vision()
        self._check_logits()

    @classmethod
    def trusted(cls, fields: dict[str, Any]) -> "Record":
        """A record from fields that a checksum already vouches for: no checks, for the reading path."""
        return _unchecked(cls, fields)

    @property
    def has_image(self) -> bool:
        return self.image is not None

    @property
    def sequence_length(self) -> int:
        """L: tokens after the image placeholder is replaced by the vision tokens."""
        return len(self.input_ids) - int(self.has_image) + len(self.vision_positions)

    def _check_text(self) -> None:
        _check_hex("key", self.key)
        if (self.image is None) != (self.image_sha256 is None):
            raise RecordError(f"image is {self.image!r} but image_sha256 is {self.image_sha256!r}: give both")
        if self.image_sha256 is not None:
            _check_hex("image_sha256", self.image_sha256)
        if self.index < 0:
            raise RecordError(f"index is {self.index}, expected 0 or more")
        for turn in self.conversations:
            if set(turn) != {"from", "value"} or not all(isinstance(text, str) for text in turn.values()):
                raise RecordError(f"conversations has a turn {turn!r}, expected texts 'from' and 'value'")

    def _check_sequence(self) -> None:
        for name in _SEQUENCE_FIELDS:
            _check_array(name, getattr(self, name), (np.int32,), 1)
        if self.labels.shape != self.input_ids.shape:
            raise RecordError(f"labels has shape {self.labels.shape}, input_ids {self.input_ids.shape}")
        images = int(np.count_nonzero(self.input_ids == IMAGE_TOKEN))
        if images != int(self.has_image):
            raise RecordError(f"input_ids holds {images} image tokens ({IMAGE_TOKEN}), image is {self.image!r}")
        if (len(self.vision_positions) > 0) != self.has_image:
            raise RecordError(f"vision_positions has shape {self.vision_positions.shape}, image is {self.image!r}")
        for name in _POSITION_FIELDS:
            _check_positions(name, getattr(self, name), self.sequence_length)
        supervised = int(np.count_nonzero(self.labels[1:] != IGNORED_LABEL))
        if len(self.supervised_positions) != supervised:
            raise RecordError(
                f"supervised_positions has shape {self.supervised_positions.shape}, labels supervise {supervised}"
            )

    def _check_attention(self) -> None:
        if self.attention is not None:
            _check_array("attention", self.attention, FLOATS, 3)
            _check_finite("attention", self.attention)

    def _check_vision(self) -> None:
        P = len(self.vision_positions)
        if self.vision_embeddings is not None:
            _check_array("vision_embeddings", self.vision_embeddings, FLOATS, 2)
            _check_finite("vision_embeddings", self.vision_embeddings)
            if not P or len(self.vision_embeddings) != P:
                raise RecordError(
                    f"vision_embeddings has shape {self.vision_embeddings.shape}, vision_positions ({P},)"
                )
        index, embeddings = self.vision_top_index, self.vision_top_embeddings
        if (index is None) != (embeddings is None):
            raise RecordError("vision_top_index and vision_top_embeddings belong together, one is missing")
        if index is None or embeddings is None:
            return
        _check_array("vision_top_index", index, (np.uint16,), 1)
        _check_array("vision_top_embeddings", embeddings, FLOATS, 2)
        _check_finite("vision_top_embeddings", embeddings)
        if len(index) != len(embeddings):
            raise RecordError(f"vision_top_index has shape {index.shape}, vision_top_embeddings {embeddings.shape}")
        if len(np.unique(index)) != len(index) or (index >= P).any():
            raise RecordError(f"vision_top_index holds {index.tolist()}, expected distinct tokens below {P}")

    def _check_logits(self) -> None:
        if self.logits is None:
            return
        if isinstance(self.logits, TruncatedLogits):
            positions = len(self.logits.tail_logmass)
        else:
            _check_array("logits", self.logits, FLOATS, 2)
            _check_finite("logits", self.logits)
            positions = len(self.logits)
        if positions != len(self.supervised_positions):
            raise RecordError(
                f"logits has {positions} positions, supervised_positions {self.supervised_positions.shape}"
            )


_POSITION_FIELDS = ("vision_positions", "tqv_query_positions", "supervised_positions")
_SEQUENCE_FIELDS = ("input_ids", "labels", *_POSITION_FIELDS)


def _unchecked(cls: type[T], fields: dict[str, Any]) -> T:
    instance = object.__new__(cls)
    instance.__dict__.update(fields)
    return instance


def _check_hex(name: str, value: str) -> None:
    if not re.fullmatch("[0-9a-f]{64}", value):
        raise RecordError(f"{name} is {value!r}, expected 64 lower-case hex digits")


def _check_array(name: str, values: object, dtypes: tuple[type, ...], dimensions: int) -> None:
    if not isinstance(values, np.ndarray) or values.dtype not in dtypes:
        found = getattr(values, "dtype", type(values).__name__)
        raise RecordError(f"{name} is {found}, expected {' or '.join(d.__name__ for d in dtypes)}")
    if values.ndim != dimensions:
        raise RecordError(f"{name} has shape {values.shape}, expected {dimensions} dimensions")


def _check_finite(name: str, values: FloatArray) -> None:
    if not np.isfinite(values).all():
        bad = int(np.count_nonzero(~np.isfinite(values)))
        raise RecordError(f"{name} has {bad} of {values.size} values that are NaN or infinite, expected none")


def _check_positions(name: str, positions: NDArray[np.int32], length: int) -> None:
    if not positions.size:
        return
    if positions[0] < 0 or positions[-1] >= length or (np.diff(positions) <= 0).any():
        raise RecordError(
            f"{name} spans {int(positions.min())}..{int(positions.max())}, expected rising positions "
            f"within 0..{length - 1}"
        )
