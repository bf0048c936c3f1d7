"""One sample as a model takes it, and what prepares it; every family of models has an implementation.

Shapes: T ids, L positions after vision tokens are inserted (T = L where the ids have one entry per vision token).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from PIL.Image import Image

from alignkd.vlm.data.turns import Turn
from alignkd.vlm.errors import SampleError
from alignkd.vlm.inputs.position_map import PositionMap

# The arrays of ONE image by the name of the model's argument; the first axis is that of the argument (tiles, patches).
ImageArrays = Mapping[str, NDArray[np.generic]]
ImageSize = tuple[int, int]
"""Width and height in pixels as stored, see `image_file.image_size`; EXIF orientation is not applied."""


class OverlongError(SampleError):
    """The sample has more embedded tokens than `max_tokens`. It is dropped, not truncated."""


def is_overlong(num_tokens: int, max_tokens: int) -> bool:
    """Whether a sample with `num_tokens` embedded tokens (text + vision) is dropped."""
    return num_tokens > max_tokens


def overlong_error(num_tokens: int, max_tokens: int) -> OverlongError:
    """The error for an overlong sample."""
    return OverlongError(f"{num_tokens} tokens, more than max_tokens {max_tokens}; dropped")


@dataclass(frozen=True, kw_only=True)
class Tokens:
    """A sample without its pixels.

    Attributes:
        input_ids, labels: int32 [T].
        positions: positions in the sequence that the decoder sees.
        types: int32 [L] by the name of the model's argument (`mm_token_type_ids`, `token_type_ids`); empty for models
            that take none.
    """

    input_ids: NDArray[np.int32]
    labels: NDArray[np.int32]
    positions: PositionMap
    types: Mapping[str, NDArray[np.int32]] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Example(Tokens):
    """One tokenised sample.

    Attributes:
        images: the arrays of each image, e.g. `{"pixel_values": float32 [3, image_size, image_size]}`; empty without
            an image, and where the pixels were taken out.
        generated: bool [N], the supervised positions whose label is of an answer that a model wrote; None where nobody
            asked for them.
    """

    images: tuple[ImageArrays, ...] = ()
    generated: NDArray[np.bool_] | None = None


class Preparation(Protocol):
    """Tokenizer, template and image processor of a checkpoint: everything that needs no weights.

    Instances are used by several threads at once, and can be pickled and forked.
    """

    @property
    def max_tokens(self) -> int | None:
        """Maximum number of embedded tokens (text + vision) of a sample, or None."""

    @property
    def vision_tokens(self) -> int | None:
        """Tokens per image; None if they depend on the image."""

    @property
    def num_tokens(self) -> int:
        """Entries of the tokenizer; ids are below it."""

    @property
    def stop_ids(self) -> frozenset[int]:
        """Ids that end an answer."""

    @property
    def template_fingerprint(self) -> str:
        """Identifies the prompt template in the samples' keys."""

    @property
    def fingerprint(self) -> dict[str, str]:
        """Everything that decides a sample's tokens and pixels, by name; teacher and student must agree on it.

        The name `vision_tokens` holds what decides the number of vision tokens of an image.
        """

    def tokenize(self, turns: Sequence[Turn], sizes: Sequence[ImageSize]) -> Tokens:
        """The tokens of a training example of any length; the pixels are not needed.

        Args:
            sizes: size of each image, in the order of their `<image>`.

        Raises:
            SampleError: unusable conversation.
        """

    def build(self, turns: Sequence[Turn], files: Sequence[bytes]) -> Example:
        """The training example of a conversation.

        Args:
            files: bytes of each image file, in the order of their `<image>`.

        Raises:
            SampleError: unusable conversation or image. OverlongError: more than `max_tokens`.
        """

    def build_question(self, turns: Sequence[Turn], files: Sequence[bytes]) -> Example:
        """A prompt that ends where the answer begins (no labels), for generation; arguments as `build`."""

    def check_image(self, image: Image) -> None:
        """Refuse a decoded RGB image from which `build` would make no arrays, without making them where possible.

        Raises:
            ImageError: its shape is unusable.
        """

    def decode(self, ids: Sequence[int]) -> str:
        """The text of generated ids, without special tokens."""

    def warnings(self) -> Sequence[str]:
        """Lines on what a user should know of this template before a long run; none where there is nothing to say."""

    def marked(self, tokens: Tokens) -> list[tuple[str, bool]]:
        """The text of a sample in pieces, each with whether it is supervised; runs of vision tokens as their number."""

    def caching_images(self) -> "Preparation":
        """A copy that keeps the arrays of each image file that it has processed, for samples that share images."""

    def probe(self) -> dict[str, list[int]]:
        """Text -> ids of fixed texts, kept in stores: equal files do not prove equal tokens in another library version.

        JSON-able.
        """

    def check_probe(self, stored: Mapping[str, Sequence[int]], where: str, *, image_tokens: bool = True) -> None:
        """Encode the texts of a stored probe again and compare.

        Args:
            stored: the result of `probe`, possibly of another version.
            where: name of the file or store that holds it.
            image_tokens: whether the tokens of images must be equal, where the probe has them.

        Raises:
            InputError: they differ; names `where`.
        """
