"""From a conversation and image bytes to MobileVLM's input."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby

import numpy as np
from numpy.typing import NDArray
from PIL.Image import Image

from alignkd.vlm.data.turns import Turn
from alignkd.vlm.errors import ImageError
from alignkd.vlm.families.mobilevlm.inputs.images import ImageProcessor
from alignkd.vlm.families.mobilevlm.inputs.templates import (
    TemplateName,
    template_fingerprint,
    tokenize_conversation,
    tokenize_question,
)
from alignkd.vlm.families.mobilevlm.inputs.tokenizer import LegacyLlamaTokenizer
from alignkd.vlm.inputs.examples import Example, ImageArrays, ImageSize, Tokens, is_overlong, overlong_error
from alignkd.vlm.inputs.labels import IGNORE_LABEL, IMAGE_TOKEN_ID
from alignkd.vlm.inputs.position_map import position_map

# Pixels. After decoding, only a large canvas can make an image unusable: images with shorter sides are not resized.
LONG_SIDE = 4096


@dataclass(frozen=True, kw_only=True)
class MobileVLMPreparation:
    """Tokenizer, template and image processor of a checkpoint; implements `Preparation`.

    Attributes:
        vision_tokens: P, tokens per image.
        max_tokens: maximum number of embedded tokens (text + vision) of a sample, or None.
        verbatim: whether `build_question` keeps turns as they stand, as the original's evaluation does.
    """

    tokenizer: LegacyLlamaTokenizer
    template: TemplateName
    image_processor: ImageProcessor
    vision_tokens: int
    max_tokens: int | None = None
    verbatim: bool = False

    @property
    def num_tokens(self) -> int:
        """Pieces of the tokenizer."""
        return len(self.tokenizer)

    @property
    def stop_ids(self) -> frozenset[int]:
        """`</s>`."""
        return frozenset([self.tokenizer.eos_token_id])

    @property
    def template_fingerprint(self) -> str:
        """Name and version of the template, a part of the samples' keys."""
        return template_fingerprint(self.template)

    @property
    def fingerprint(self) -> dict[str, str]:
        """Everything that decides a sample's tokens and pixels, by name; teacher and student must agree on it."""
        return {
            "tokenizer": self.tokenizer.fingerprint,
            "template": self.template_fingerprint,
            "image_processor": self.image_processor.fingerprint,
            "vision_tokens": str(self.vision_tokens),
        }

    def tokenize(self, turns: Sequence[Turn], sizes: Sequence[ImageSize]) -> Tokens:
        """The tokens of a training example of any length; of `sizes` only the number counts.

        Raises:
            SampleError: unusable conversation.
        """
        tokens = tokenize_conversation(turns, template=self.template, num_images=len(sizes), tokenizer=self.tokenizer)
        return self._place(tokens.input_ids, tokens.labels)

    def build(self, turns: Sequence[Turn], files: Sequence[bytes]) -> Example:
        """The training example of a conversation.

        Args:
            files: bytes of each image file, in the order of their `<image>`.

        Raises:
            SampleError: unusable conversation or image. OverlongError: more than `max_tokens`.
        """
        tokens = tokenize_conversation(turns, template=self.template, num_images=len(files), tokenizer=self.tokenizer)
        return self._example(self._place(tokens.input_ids, tokens.labels), files)

    def build_question(self, turns: Sequence[Turn], files: Sequence[bytes]) -> Example:
        """A prompt that ends where the answer begins (no labels), for generation; arguments as `build`."""
        input_ids = tokenize_question(
            turns,
            template=self.template,
            num_images=len(files),
            tokenizer=self.tokenizer,
            verbatim=self.verbatim,
        )
        return self._example(self._place(input_ids, [IGNORE_LABEL] * len(input_ids)), files)

    def check_image(self, image: Image) -> None:
        """Refuse an image that is too elongated.

        Raises:
            ImageError: its canvas would be too large.
        """
        if max(image.size) > LONG_SIDE:
            self.image_processor.process(image)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of generated ids, without special tokens."""
        return self.tokenizer.decode(list(ids))

    def warnings(self) -> tuple[str, ...]:
        """None: the templates are those of the original code."""
        return ()

    def marked(self, tokens: Tokens) -> list[tuple[str, bool]]:
        """The text of a sample in pieces, each with whether it is supervised; images as their number of tokens."""
        image = f"[{self.vision_tokens} vision tokens]"
        kinds = zip(tokens.input_ids == IMAGE_TOKEN_ID, tokens.labels != IGNORE_LABEL, strict=True)
        pieces, position = [], 0
        for (is_image, supervised), run in groupby(kinds):
            count = len(list(run))
            ids = tokens.input_ids[position : position + count].tolist()
            pieces.append((image * count if is_image else self.tokenizer.shown(ids), bool(supervised)))
            position += count
        return pieces

    def caching_images(self) -> "MobileVLMPreparation":
        """A copy that keeps the pixels of each image file that it has processed."""
        return replace(self, image_processor=_DecodesOnce(**vars(self.image_processor)))

    def probe(self) -> dict[str, list[int]]:
        """Text -> ids of fixed texts, see `Preparation.probe`."""
        return self.tokenizer.probe_ids()

    def check_probe(self, stored: Mapping[str, Sequence[int]], where: str, *, image_tokens: bool = True) -> None:
        """Encode the texts of a stored probe again and compare.

        Raises:
            InputError: the ids of a text differ.
        """
        self.tokenizer.check_probe(stored, where)

    def _place(self, input_ids: Sequence[int], labels: Sequence[int]) -> Tokens:
        positions = position_map(input_ids, labels, vision_tokens=self.vision_tokens)
        return Tokens(
            input_ids=np.asarray(input_ids, np.int32), labels=np.asarray(labels, np.int32), positions=positions
        )

    def _example(self, tokens: Tokens, files: Sequence[bytes]) -> Example:
        if self.max_tokens is not None and is_overlong(tokens.positions.length, self.max_tokens):
            raise overlong_error(tokens.positions.length, self.max_tokens)
        return Example(**vars(tokens), images=self._pixels(files))

    def _pixels(self, files: Sequence[bytes]) -> tuple[ImageArrays, ...]:
        images = []
        for number, file in enumerate(files):
            try:
                images.append({"pixel_values": self.image_processor(file)})
            except ImageError as error:
                if len(files) == 1:
                    raise
                raise ImageError(f"image {number + 1} of {len(files)}: {error}") from error
        return tuple(images)


@dataclass(frozen=True)
class _DecodesOnce(ImageProcessor):
    """An image processor that caches the pixels of each file."""

    seen: dict[bytes, NDArray[np.float32]] = field(default_factory=dict, compare=False)

    def __call__(self, image_bytes: bytes) -> NDArray[np.float32]:
        if image_bytes not in self.seen:
            self.seen[image_bytes] = super().__call__(image_bytes)
        return self.seen[image_bytes]
