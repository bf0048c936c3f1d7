"""One sample's cached targets, in the form used outside `storage`.

Shape letters: T input_ids, L positions, k images, P vision tokens of all images together, Q text queries that can see
every image, N supervised positions, R and C attention rows and columns, Ht heads of the teacher, Dt its hidden size, V
vocabulary, K selected vision tokens (at most 16).

What belongs to images is a tuple of k items, whether k is 0, 1 or more.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from alignkd.storage.errors import RecordError
from alignkd.storage.record.checks import (
    FLOATS,
    check_array,
    check_finite,
    check_further,
    check_hex,
    check_positions,
    check_target,
)
from alignkd.storage.record.distributions import HiddenStates, SampledLogits, TruncatedLogits, unchecked
from alignkd.storage.record.encoded import EncodedArray, FloatArray, as_float32
from alignkd.storage.record.images import Target, all_images_float32
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
    "heads_first",
]

# as in `vlm`, which this room does not import
IMAGE_TOKEN_ID = -200
IGNORE_LABEL = -100
# indices of vision tokens are uint16
MAX_VISION_TOKENS = (1 << 16) - 1

Logits = FloatArray | TruncatedLogits | HiddenStates | SampledLogits


@dataclass(frozen=True, kw_only=True, eq=False)
class Record:
    """Everything that a student needs of one sample, checked on construction.

    Attributes:
        key: content hash of conversation, image bytes and template; 64 lower-case hex digits.
        id: the user's id; need not be unique.
        index: index of the sample in the data set.
        conversations: turns, each `{"from": "human" | "gpt" | "system", "value": text}`, with `"trained": False` of an
            answer whose tokens are not supervised, and `"generated": True` of one that a model wrote.
        images: paths of the k images, relative to the image folder; empty for a text-only sample.
        image_sha256: sha256 of each image file.
        image_bytes: bytes of each image file, where the store embeds them; else empty.
        input_ids: int32 [T]: -200 where each image is (T = L - P + k), or one id for every position (T = L).
        labels: int32 [T], -100 where not supervised.
        tokens_of_image: vision tokens of each image; by default equal parts of `vision_positions`.
        vision_positions: int32 [P], [0] for text only, image by image; positions count the L positions.
        tqv_query_positions: int32 [Q], text positions after the last vision token.
        supervised_positions: int32 [N], positions whose NEXT token has a label.
        attention: probabilities [blocks, R, Ht, C] of the first decoder layer that has attention. One block with all
            columns, or a block for each image where every image has C tokens; `tqv` has R = Q, `vqv` R = P. One block
            where the columns are text tokens (`tqt`).
        vision_top_index: uint16 [K], the vision tokens with the highest focus score, counted through all images.
        vision_top_embeddings: projector output at those tokens [K, Dt]; may be None if `vision_embeddings` has them.
        vision_embeddings: projector output of each image, [P_i, Dt].
        logits: unnormalised logits [N, V], the kept entries of the distribution, hidden states or draws.
        more: further targets by name (`Manifest.more`), rows first; those of kind `logits` in one of the forms of
            `logits`. Targets that need an image are absent from a text-only sample.
        attention_pairs: queries and keys of `attention`: `tqv`, `tqt` or `vqv`; set by readers, not stored here.

    Targets are float16 or float32, or an EncodedArray of the store's codec. Targets that the store does not keep, and
    image targets of a text-only sample, are None.
    """

    key: str
    id: str
    index: int
    conversations: list[dict[str, Any]]
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
    vision_embeddings: tuple[Target, ...] | None = None
    logits: Logits | None = None
    image_bytes: tuple[bytes, ...] = ()
    tokens_of_image: tuple[int, ...] = ()
    more: Mapping[str, Target | Logits] = field(default_factory=dict)
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
        for name, values in self.more.items():
            if not isinstance(values, TruncatedLogits | HiddenStates | SampledLogits):
                check_further(name, values)

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
        try:
            self.__post_init__()
            for logits in (self.logits, *self.more.values()):
                if isinstance(logits, TruncatedLogits | HiddenStates | SampledLogits):
                    logits.__post_init__()
        except RecordError:
            raise
        except (TypeError, ValueError, LookupError, AttributeError, RecursionError) as error:
            # a value of another type or size than the checks expect, which no writer has written
            raise RecordError(f"the record holds a value that no writer writes ({type(error).__name__})") from error

    @property
    def attention_float32(self) -> NDArray[np.float32] | None:
        """`attention` decoded, float32 of the same shape; `attention_pairs` names its queries and keys."""
        return _decoded(self.attention)

    @property
    def tqv_attention(self) -> NDArray[np.float32] | None:
        """Attention from text queries to the vision tokens of all images, decoded, float32 [Ht, Q, P].

        Raises:
            RecordError: the store keeps the attention of other pairs.
        """
        if self.attention_pairs not in ("tqv", None):
            raise RecordError(
                f"attention is of the pairs {self.attention_pairs}, tqv_attention needs tqv; use attention_float32"
            )
        values = self.attention_float32
        return None if values is None else heads_first(values)

    @property
    def vision_embeddings_float32(self) -> NDArray[np.float32] | None:
        """`vision_embeddings` of all images, decoded, float32 [P, Dt]."""
        return None if self.vision_embeddings is None else all_images_float32(self.vision_embeddings)

    @property
    def vision_top_embeddings_float32(self) -> NDArray[np.float32] | None:
        """`vision_top_embeddings` decoded, float32 [K, Dt]."""
        return _decoded(self.vision_top_embeddings)

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
        """L, positions; each -200 in `input_ids` stands for the vision tokens of an image."""
        if not self.has_image or not (self.input_ids == IMAGE_TOKEN_ID).any():
            return len(self.input_ids)
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
            texts = {key: value for key, value in turn.items() if key not in ("trained", "generated")}
            if set(texts) != {"from", "value"} or not all(isinstance(text, str) for text in texts.values()):
                raise RecordError(f"conversations has a turn {turn!r}, expected texts 'from' and 'value'")
            if turn.get("trained", False) is not False or ("trained" in turn and turn["from"] != "gpt"):
                raise RecordError(f"conversations has a turn {turn!r}, expected 'trained' only as false of a gpt turn")
            if turn.get("generated", True) is not True or ("generated" in turn and turn["from"] != "gpt"):
                raise RecordError(f"conversations has a turn {turn!r}, expected 'generated' only as true of a gpt turn")

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
        placeholders = int(np.count_nonzero(self.input_ids == IMAGE_TOKEN_ID))
        if placeholders not in (0, self.num_images):
            raise RecordError(
                f"input_ids holds {placeholders} image tokens ({IMAGE_TOKEN_ID}), images has {self.num_images} paths"
            )
        self._check_tokens_of_image()
        for name in _POSITION_FIELDS:
            check_positions(name, getattr(self, name), self.sequence_length)
        supervised = int(np.count_nonzero(self.labels[1:] != IGNORE_LABEL))
        if len(self.supervised_positions) != supervised:
            raise RecordError(
                f"supervised_positions has shape {self.supervised_positions.shape}, labels supervise {supervised}"
            )

        one_id_per_position = self.sequence_length == len(self.input_ids)
        if one_id_per_position and (self.labels[self.supervised_positions + 1] == IGNORE_LABEL).any():
            raise RecordError("supervised_positions are not the positions before labels, of which there are as many")

    def _check_tokens_of_image(self) -> None:
        """Fill in the default, and compare with the vision positions."""
        P, k = len(self.vision_positions), self.num_images
        if not self.tokens_of_image and k and P % k == 0:
            object.__setattr__(self, "tokens_of_image", (P // k,) * k)
        found = self.tokens_of_image
        if len(found) != k or sum(found) != P or min(found, default=1) < 1 or P > MAX_VISION_TOKENS:
            raise RecordError(
                f"vision_positions has shape {self.vision_positions.shape}, tokens_of_image is {found}, images {k}"
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
            self._check_every_image(every)
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

    def _check_every_image(self, every: tuple[Target, ...]) -> None:
        if not isinstance(every, tuple):
            raise RecordError(f"vision_embeddings is {type(every).__name__}, expected a tuple with a target per image")
        for target in every:
            check_target("vision_embeddings", "vision_all", target, 2)
        found = tuple(target.shape[0] for target in every)
        if found != self.tokens_of_image or len({target.shape[-1] for target in every}) > 1:
            shapes = [target.shape for target in every]
            raise RecordError(f"vision_embeddings have shapes {shapes}, tokens_of_image is {self.tokens_of_image}")

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


def heads_first(attention: NDArray[Any]) -> NDArray[Any]:
    """[blocks, R, Ht, C] -> [Ht, R, blocks * C], the blocks' columns side by side."""
    blocks, rows, heads, columns = attention.shape
    return attention.transpose(2, 1, 0, 3).reshape(heads, rows, blocks * columns)


def _decoded(target: Target | None) -> NDArray[np.float32] | None:
    return None if target is None else as_float32(target)


_POSITION_FIELDS = ("vision_positions", "tqv_query_positions", "supervised_positions")
_SEQUENCE_FIELDS = ("input_ids", "labels", *_POSITION_FIELDS)
