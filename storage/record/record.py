"""One sample's cached targets, in the form used outside `storage`.

Shape letters: T input_ids before splicing, L sequence after splicing, k images, P vision tokens of each, Q text queries
that can see every image, N supervised positions, R and C attention rows and columns, Ht heads of the teacher, Dt its
hidden size, V vocabulary, K selected vision tokens (16).

What belongs to images is a tuple of k items, or an array with a leading axis k, whether k is 0, 1 or more.
"""

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from alignkd.storage.errors import RecordError
from alignkd.storage.record.checks import FLOATS, check_array, check_finite, check_hex, check_positions, check_target
from alignkd.storage.record.distributions import HiddenStates, SampledLogits, TruncatedLogits, unchecked
from alignkd.storage.record.encoded import EncodedArray, FloatArray, as_float32
from alignkd.storage.record.shown import show_fields

__all__ = [
    "EncodedArray",
    "FloatArray",
    "HiddenStates",
    "Logits",
    "Record",
    "SampledLogits",
    "Target",
    "TruncatedLogits",
    "as_float32",
]

# as in `vlm`, which this room does not import
IMAGE_TOKEN_ID = -200
IGNORE_LABEL = -100

Target = FloatArray | EncodedArray
Logits = FloatArray | TruncatedLogits | HiddenStates | SampledLogits


@dataclass(frozen=True, kw_only=True, eq=False)
class Record:
    """Everything that a student needs of one sample, checked on construction.

    Attributes:
        key: content hash of conversation, image bytes and template; 64 lower-case hex digits.
        id: the user's id; need not be unique.
        index: index of the sample in the data set.
        conversations: turns, each `{"from": "human" | "gpt", "value": text}`.
        images: paths of the k images, relative to the image folder; empty for a text-only sample.
        image_sha256: sha256 of each image file.
        image_bytes: bytes of each image file, where the store embeds them; else empty.
        input_ids: int32 [T], -200 where an image is.
        labels: int32 [T], -100 where not supervised.
        vision_positions: int32 [k * P], [0] for text only; all positions are in the spliced sequence.
        tqv_query_positions: int32 [Q], text positions after the last vision token.
        supervised_positions: int32 [N], positions whose NEXT token has a label.
        attention: probabilities [k, R, Ht, C] of the first decoder layer, a block of columns for each image; `tqv` has
            R = Q and C = P. One block where the columns are text tokens (`tqt`).
        vision_top_index: uint16 [K], the vision tokens with the highest focus score, counted through all images.
        vision_top_embeddings: projector output at those tokens [K, Dt]; may be None if `vision_embeddings` has them.
        vision_embeddings: projector output [k, P, Dt].
        logits: unnormalised logits [N, V], the kept entries of the distribution, hidden states or draws.
        attention_pairs: queries and keys of `attention`: `tqv`, `tqt` or `vqv`; set by readers, not stored here.

    Targets are float16 or float32, or an EncodedArray of the store's codec. Targets that the store does not keep, and
    image targets of a text-only sample, are None.
    """

    key: str
    id: str
    index: int
    conversations: list[dict[str, str]]
    images: tuple[str, ...]
    image_sha256: tuple[str, ...]
    input_ids: NDArray[np.int32]
    labels: NDArray[np.int32]
    vision_positions: NDArray[np.int32]
    tqv_query_positions: NDArray[np.int32]
    supervised_positions: NDArray[np.int32]
    attention: Target | None = None
    vision_top_index: NDArray[np.uint16] | None = None
    vision_top_embeddings: Target | None = None
    vision_embeddings: Target | None = None
    logits: Logits | None = None
    image_bytes: tuple[bytes, ...] = ()
    attention_pairs: str | None = None

    def __post_init__(self) -> None:
        """Check every field against the others.

        Raises:
            RecordError: names the field and both values.
        """
        self._check_text()
        self._check_sequence()
        self._check_attention()
        self._check_vision()
        self._check_logits()

    def __repr__(self) -> str:
        return show_fields(self)

    @classmethod
    def trusted(cls, fields: dict[str, Any]) -> "Record":
        """A record without checks, for the reading path, where a checksum has verified the fields."""
        return unchecked(cls, fields)

    def recheck(self) -> None:
        """Run all checks of the constructor, also of the logits, on a `trusted` record.

        Raises:
            RecordError: names the field and both values.
        """
        self.__post_init__()
        if isinstance(self.logits, TruncatedLogits | HiddenStates | SampledLogits):
            self.logits.__post_init__()

    @property
    def attention_float32(self) -> NDArray[np.float32] | None:
        """`attention` decoded, float32 of the same shape; `attention_pairs` names its queries and keys."""
        return _decoded(self.attention)

    @property
    def tqv_attention(self) -> NDArray[np.float32] | None:
        """Attention from text queries to vision tokens, decoded, float32 [k, Q, Ht, P].

        Raises:
            RecordError: the store keeps the attention of other pairs.
        """
        if self.attention_pairs not in ("tqv", None):
            raise RecordError(
                f"attention is of the pairs {self.attention_pairs}, tqv_attention needs tqv; use attention_float32"
            )
        return self.attention_float32

    @property
    def vision_embeddings_float32(self) -> NDArray[np.float32] | None:
        """`vision_embeddings` decoded, float32 of the same shape."""
        return _decoded(self.vision_embeddings)

    @property
    def vision_top_embeddings_float32(self) -> NDArray[np.float32] | None:
        """`vision_top_embeddings` decoded, float32 [K, Dt]."""
        return _decoded(self.vision_top_embeddings)

    @property
    def tokens_of_image(self) -> tuple[int, ...]:
        """Vision tokens of each image."""
        return (len(self.vision_positions) // max(self.num_images, 1),) * self.num_images

    @property
    def has_image(self) -> bool:
        """Whether the sample has images."""
        return bool(self.images)

    @property
    def num_images(self) -> int:
        """k, number of images."""
        return len(self.images)

    @property
    def sequence_length(self) -> int:
        """L, tokens after each image placeholder is replaced by the vision tokens."""
        return len(self.input_ids) - self.num_images + len(self.vision_positions)

    def _check_text(self) -> None:
        check_hex("key", self.key)
        if len(self.image_sha256) != self.num_images:
            raise RecordError(f"images has {self.num_images} paths, image_sha256 {len(self.image_sha256)} hashes")
        for sha256 in self.image_sha256:
            check_hex("image_sha256", sha256)
        self._check_image_bytes()
        if self.index < 0:
            raise RecordError(f"index is {self.index}, expected 0 or more")
        for turn in self.conversations:
            if set(turn) != {"from", "value"} or not all(isinstance(text, str) for text in turn.values()):
                raise RecordError(f"conversations has a turn {turn!r}, expected texts 'from' and 'value'")

    def _check_image_bytes(self) -> None:
        if not self.image_bytes:
            return
        if len(self.image_bytes) != self.num_images:
            raise RecordError(f"image_bytes holds {len(self.image_bytes)} files, image_sha256 {self.num_images} hashes")
        for content, sha256 in zip(self.image_bytes, self.image_sha256, strict=True):
            if (found := hashlib.sha256(content).hexdigest()) != sha256:
                raise RecordError(
                    f"image_bytes ({len(content)} bytes) have sha256 {found[:12]}, image_sha256 is {sha256[:12]}"
                )

    def _check_sequence(self) -> None:
        for name in _SEQUENCE_FIELDS:
            check_array(name, getattr(self, name), (np.int32,), 1)
        if self.labels.shape != self.input_ids.shape:
            raise RecordError(f"labels has shape {self.labels.shape}, input_ids {self.input_ids.shape}")
        images = int(np.count_nonzero(self.input_ids == IMAGE_TOKEN_ID))
        if images != self.num_images:
            raise RecordError(
                f"input_ids holds {images} image tokens ({IMAGE_TOKEN_ID}), images has {self.num_images} paths"
            )
        vision = len(self.vision_positions)
        if (vision > 0) != self.has_image or vision % max(images, 1):
            raise RecordError(f"vision_positions has shape {self.vision_positions.shape}, images {self.num_images}")
        for name in _POSITION_FIELDS:
            check_positions(name, getattr(self, name), self.sequence_length)
        supervised = int(np.count_nonzero(self.labels[1:] != IGNORE_LABEL))
        if len(self.supervised_positions) != supervised:
            raise RecordError(
                f"supervised_positions has shape {self.supervised_positions.shape}, labels supervise {supervised}"
            )

    def _check_attention(self) -> None:
        if self.attention is None:
            return
        check_target("attention", "attention", self.attention, 4)
        if self.attention.shape[0] not in (1, self.num_images):
            raise RecordError(f"attention has shape {self.attention.shape}, of {self.num_images} images")

    def _check_vision(self) -> None:
        P, every = len(self.vision_positions), self.vision_embeddings
        if every is not None:
            k = self.num_images
            check_target("vision_embeddings", "vision_all", every, 3)
            if not P or every.shape[:-1] != (k, P // k):
                raise RecordError(f"vision_embeddings has shape {every.shape}, vision_positions ({P},), images {k}")
        index, embeddings = self.vision_top_index, self.vision_top_embeddings
        if index is None and embeddings is None:
            return
        if index is None or (embeddings is None and every is None):
            raise RecordError("vision_top_index and vision_top_embeddings belong together, one is missing")
        check_array("vision_top_index", index, (np.uint16,), 1)
        if len(np.unique(index)) != len(index) or (index >= P).any():
            raise RecordError(f"vision_top_index holds {index.tolist()}, expected distinct tokens below {P}")
        if embeddings is not None:
            check_target("vision_top_embeddings", "vision_top", embeddings, 2)
            if len(index) != embeddings.shape[0]:
                raise RecordError(f"vision_top_index has shape {index.shape}, vision_top_embeddings {embeddings.shape}")

    def _check_logits(self) -> None:
        if self.logits is None:
            return
        if isinstance(self.logits, TruncatedLogits | HiddenStates | SampledLogits):
            positions = self.logits.num_positions
        else:
            check_array("logits", self.logits, FLOATS, 2)
            check_finite("logits", self.logits)
            positions = len(self.logits)
        if positions != len(self.supervised_positions):
            raise RecordError(
                f"logits has {positions} positions, supervised_positions {self.supervised_positions.shape}"
            )


def _decoded(target: Target | None) -> NDArray[np.float32] | None:
    return None if target is None else as_float32(target)


_POSITION_FIELDS = ("vision_positions", "tqv_query_positions", "supervised_positions")
_SEQUENCE_FIELDS = ("input_ids", "labels", *_POSITION_FIELDS)
