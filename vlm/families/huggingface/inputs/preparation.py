"""From a conversation and image bytes to the input of a model of transformers."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import compress, groupby
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from alignkd.vlm.data.turns import Turn
from alignkd.vlm.errors import ImageError, SampleError
from alignkd.vlm.families.huggingface.inputs.fingerprint import check_probe
from alignkd.vlm.families.huggingface.inputs.images import ImageEncoder
from alignkd.vlm.families.huggingface.inputs.probes import is_of_image, probed_ids, probes
from alignkd.vlm.families.huggingface.inputs.processor import LoadedProcessor
from alignkd.vlm.families.huggingface.inputs.text.chat import ChatTemplate, Rendered
from alignkd.vlm.families.huggingface.inputs.text.expansion import expanded
from alignkd.vlm.families.huggingface.inputs.text.labels import labels_of
from alignkd.vlm.families.huggingface.inputs.text.messages import Message, check_question, check_training, messages_of
from alignkd.vlm.families.huggingface.inputs.text.reserved import ReservedTexts
from alignkd.vlm.families.huggingface.inputs.text.text_tokens import FastTokenizer
from alignkd.vlm.inputs.examples import Example, ImageArrays, ImageSize, Tokens, is_overlong, overlong_error
from alignkd.vlm.inputs.image_file import decode_image
from alignkd.vlm.inputs.labels import IGNORE_LABEL
from alignkd.vlm.inputs.position_map import spliced_position_map

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class HuggingFacePreparation:
    """Processor and chat template of a checkpoint; implements `Preparation`. Made by `open_preparation`.

    Attributes:
        max_tokens: maximum number of tokens of a sample, vision tokens included, or None.
        types: names of the arguments with a type for each token that the model takes.
        fingerprint: see `Preparation`.
        remarks: see `warnings`.
    """

    loaded: LoadedProcessor
    template: ChatTemplate
    tokenizer: FastTokenizer
    images: ImageEncoder
    reserved: ReservedTexts
    types: tuple[str, ...] = ()
    fingerprint: dict[str, str] = field(default_factory=dict)
    remarks: tuple[str, ...] = ()
    max_tokens: int | None = None
    _kept: dict[tuple[bytes, int], tuple[ImageSize, ImageArrays]] | None = field(default=None, repr=False)

    @property
    def vision_tokens(self) -> int | None:
        """None: the tokens of an image depend on its size."""
        return None

    @property
    def num_tokens(self) -> int:
        """Entries of the tokenizer."""
        return len(self.loaded.tokenizer)

    @property
    def stop_ids(self) -> frozenset[int]:
        """Ids that end an answer."""
        return self.loaded.stop_ids

    @property
    def template_fingerprint(self) -> str:
        """Identifies the chat template in the samples' keys."""
        return self.fingerprint["template"]

    def warnings(self) -> list[str]:
        """What a user should know of this chat template before training with it, one line each."""
        return list(self.remarks)

    def tokenize(self, turns: Sequence[Turn], sizes: Sequence[ImageSize]) -> Tokens:
        """The tokens of a training example of any length.

        Raises:
            SampleError: unusable conversation, or an image size that the processor refuses.
        """
        check_training(turns, num_images=len(sizes))
        return self.tokens_of(self._messages(turns), sizes, trained=_trained(turns))

    def tokens_of(
        self, messages: Sequence[Message], sizes: Sequence[ImageSize], *, trained: Sequence[bool] | None = None
    ) -> Tokens:
        """As `tokenize`, for messages that need no checks.

        Args:
            trained: for each answer whether it is supervised; None: all are.
        """
        rendered = self.template.render_training(messages)
        if trained is not None:
            rendered = replace(rendered, answers=tuple(compress(rendered.answers, trained)))
        return self._tokens(rendered, self._replacements(sizes))

    def build(self, turns: Sequence[Turn], files: Sequence[bytes]) -> Example:
        """The training example of a conversation.

        Args:
            files: bytes of each image file, in the order of their `<image>`.

        Raises:
            SampleError: unusable conversation or image. OverlongError: more than `max_tokens`.
        """
        check_training(turns, num_images=len(files))
        messages, images = self._messages(turns), self._opened(files)
        tokens = self.tokens_of(messages, [image.size for image in images], trained=_trained(turns))
        return self._example(tokens, images)

    def build_question(self, turns: Sequence[Turn], files: Sequence[bytes]) -> Example:
        """A prompt that ends where the answer begins (no labels), for generation; arguments as `build`."""
        check_question(turns, num_images=len(files))
        messages, images = self._messages(turns), self._opened(files)
        rendered = Rendered(self.template.render(messages, prompt=True), ())
        return self._example(self._tokens(rendered, self._replacements([image.size for image in images])), images)

    def check_image(self, image: Image.Image) -> None:
        """Refuse an RGB image whose size the processor refuses.

        Raises:
            ImageError: its shape is unusable.
        """
        self.images.replacement(image.size, 1)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of generated ids, without special tokens."""
        return str(self.loaded.tokenizer.decode([int(token) for token in ids], skip_special_tokens=True))

    def marked(self, tokens: Tokens) -> list[tuple[str, bool]]:
        """The text of a sample in pieces, each with whether it is supervised; runs of vision tokens as their number."""
        image = self.loaded.image_token_id
        kinds = zip(tokens.input_ids == image, tokens.labels != IGNORE_LABEL, strict=True)
        pieces, position = [], 0
        for (is_vision, supervised), run in groupby(kinds):
            count = len(list(run))
            ids = tokens.input_ids[position : position + count]
            pieces.append((f"[{count} vision tokens]" if is_vision else self.tokenizer.text(ids), bool(supervised)))
            position += count
        return pieces

    def caching_images(self) -> "HuggingFacePreparation":
        """A copy that keeps the arrays of each image file that it has processed."""
        return replace(self, _kept={})

    def probe(self) -> dict[str, list[int]]:
        """Ids of fixed texts, conversations and sizes of images by name, see `Preparation.probe`."""
        return {name: probed_ids(self.template, self.tokenizer, self.images, name) for name in probes()}

    def check_probe(self, stored: Mapping[str, Sequence[int]], where: str, *, image_tokens: bool = True) -> None:
        """Compute a stored probe again and compare; see `Preparation.check_probe`.

        Raises:
            InputError: the ids of a text differ.
        """
        wanted = {name: list(ids) for name, ids in stored.items() if image_tokens or not is_of_image(name)}
        found = {name: probed_ids(self.template, self.tokenizer, self.images, name) for name in wanted}
        check_probe(found, wanted, str(self.loaded.folder), where)

    def _messages(self, turns: Sequence[Turn]) -> list[Message]:
        messages = messages_of(turns)
        self.reserved.check(messages)
        return messages

    def _tokens(self, rendered: Rendered, replacements: Sequence[str]) -> Tokens:
        """Ids, labels and positions of a rendered conversation, given the text of each image's tokens."""
        rendered = expanded(rendered, self.loaded.processor.image_token, replacements)
        found = self.tokenizer(rendered.text)
        labels = labels_of(found, rendered.answers, stop_ids=self.loaded.stop_ids, tokenizer=self.tokenizer)
        is_vision = found.ids == self.loaded.image_token_id
        counts = [self.loaded.count_vision_tokens(replacement) for replacement in replacements]
        if int(is_vision.sum()) != sum(counts):
            raise SampleError(
                f"the text has {int(is_vision.sum())} vision tokens, its images {sum(counts)}; remove the sample"
            )
        return Tokens(
            input_ids=found.ids,
            labels=labels,
            positions=spliced_position_map(is_vision, labels, counts, blocks_of_images=False),
            types={name: self._types(found.ids) for name in self.types},
        )

    def _types(self, ids: NDArray[np.int32]) -> NDArray[np.int32]:
        return np.array(self.loaded.processor.create_mm_token_type_ids([ids.tolist()])[0], np.int32)

    def _replacements(self, sizes: Sequence[ImageSize]) -> list[str]:
        count = len(sizes)
        return [
            _numbered(number, count, partial(self.images.replacement, size, count)) for number, size in enumerate(sizes)
        ]

    def _example(self, tokens: Tokens, images: Sequence["_Opened"]) -> Example:
        if self.max_tokens is not None and is_overlong(tokens.positions.length, self.max_tokens):
            raise overlong_error(tokens.positions.length, self.max_tokens)
        count = len(images)
        arrays = tuple(_numbered(number, count, image.arrays) for number, image in enumerate(images))
        return Example(**vars(tokens), images=arrays)

    def _opened(self, files: Sequence[bytes]) -> list["_Opened"]:
        count = len(files)
        return [_numbered(number, count, partial(self._open, file, count)) for number, file in enumerate(files)]

    def _open(self, file: bytes, among: int) -> "_Opened":
        key = file, self.images.copies(among)
        if self._kept is not None and (kept := self._kept.get(key)) is not None:
            size, arrays = kept
            return _Opened(size, lambda: arrays)
        image = decode_image(file)
        return _Opened(image.size, lambda: self._encode(key, image, among))

    def _encode(self, key: tuple[bytes, int], image: Image.Image, among: int) -> ImageArrays:
        if self._kept is not None and key in self._kept:  # the same file twice in a sample
            return self._kept[key][1]
        encoded = self.images.encode(image, among)
        if encoded.replacement != self.images.replacement(image.size, among):
            raise ImageError(
                f"the processor gives an image of {image.width} x {image.height} pixels other tokens than another one "
                "of this size; this model is not supported"
            )
        if self._kept is not None:
            self._kept[key] = image.size, encoded.arrays
        return encoded.arrays


def _trained(turns: Sequence[Turn]) -> list[bool]:
    """For each answer whether it is supervised."""
    return [turn.trained for turn in turns if turn.speaker == "gpt"]


@dataclass(frozen=True)
class _Opened:
    """An image file: its size, and what computes its arrays."""

    size: ImageSize
    arrays: Callable[[], ImageArrays]


def _numbered(number: int, count: int, work: Callable[[], T]) -> T:
    """The result of `work`; its errors name the image if the sample has several."""
    try:
        return work()
    except ImageError as error:
        if count == 1:
            raise
        raise ImageError(f"image {number + 1} of {count}: {error}") from error
