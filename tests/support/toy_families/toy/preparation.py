"""Bytes as tokens; an image is one token per 32 pixels of its width, each the mean colour of that part."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray
from PIL.Image import Image

from alignkd.vlm.data.turns import Turn
from alignkd.vlm.errors import InputError, SampleError
from alignkd.vlm.inputs.examples import Example, ImageArrays, ImageSize, Tokens, is_overlong, overlong_error
from alignkd.vlm.inputs.image_file import decode_image, image_size
from alignkd.vlm.inputs.labels import IGNORE_LABEL
from alignkd.vlm.inputs.position_map import spliced_position_map

BEGIN, END, IMAGE, NUM_TOKENS = 256, 257, 258, 259
PROBE = "toy: é"


@dataclass(frozen=True, kw_only=True)
class ToyPreparation:
    max_tokens: int | None = None
    seen: dict[bytes, ImageArrays] | None = field(default=None, compare=False)

    vision_tokens: None = None
    num_tokens: int = NUM_TOKENS
    stop_ids: frozenset[int] = frozenset([END])
    template_fingerprint: str = "toy:1"

    @property
    def fingerprint(self) -> dict[str, str]:
        return {
            "tokenizer": "bytes",
            "template": self.template_fingerprint,
            "image_processor": "mean colours",
            "vision_tokens": "width / 32",
        }

    def tokenize(self, turns: Sequence[Turn], sizes: Sequence[ImageSize]) -> Tokens:
        if not turns or all(turn.speaker != "gpt" for turn in turns):
            raise SampleError("no answer to learn")
        return self._tokens(turns, sizes)

    def _tokens(self, turns: Sequence[Turn], sizes: Sequence[ImageSize]) -> Tokens:
        counts = [tokens_of(width) for width, _ in sizes]
        if (found := sum(turn.value.count("<image>") for turn in turns)) != len(counts):
            raise SampleError(f"{found} <image> in the conversation but {len(counts)} images")
        ids, labels, remaining = [BEGIN], [IGNORE_LABEL], iter(counts)
        for turn in turns:
            own: list[int] = []
            for number, piece in enumerate(turn.value.split("<image>")):
                own += [IMAGE] * (next(remaining) if number else 0)
                own += piece.encode()
            is_answer = turn.speaker == "gpt"
            own += [END] if is_answer else []
            ids += own
            labels += own if is_answer else [IGNORE_LABEL] * len(own)
        input_ids, wanted = np.array(ids, np.int32), np.array(labels, np.int32)
        positions = spliced_position_map(input_ids == IMAGE, wanted, counts, blocks_of_images=False)
        types = {"is_image": (input_ids == IMAGE).astype(np.int32)}
        return Tokens(input_ids=input_ids, labels=wanted, positions=positions, types=types)

    def build(self, turns: Sequence[Turn], files: Sequence[bytes]) -> Example:
        return self._example(self.tokenize(turns, [image_size(file) for file in files]), files)

    def build_question(self, turns: Sequence[Turn], files: Sequence[bytes]) -> Example:
        return self._example(self._tokens(turns, [image_size(file) for file in files]), files)

    def _example(self, tokens: Tokens, files: Sequence[bytes]) -> Example:
        if self.max_tokens is not None and is_overlong(tokens.positions.length, self.max_tokens):
            raise overlong_error(tokens.positions.length, self.max_tokens)
        return Example(**vars(tokens), images=tuple(self._columns(file) for file in files))

    def _columns(self, file: bytes) -> ImageArrays:
        if self.seen is not None and file in self.seen:
            return self.seen[file]
        image = decode_image(file)
        pixels_HWC: NDArray[np.float32] = np.asarray(image, np.float32) / 255
        parts = np.array_split(pixels_HWC, tokens_of(image.width), axis=1)
        arrays = {"columns": np.stack([part.mean((0, 1)) for part in parts]).astype(np.float32)}
        if self.seen is not None:
            self.seen[file] = arrays
        return arrays

    def check_image(self, image: Image) -> None:
        """Every image will do."""

    def decode(self, ids: Sequence[int]) -> str:
        return bytes(token for token in ids if token < BEGIN).decode(errors="replace")

    def warnings(self) -> Sequence[str]:
        return ()

    def caching_images(self) -> "ToyPreparation":
        return replace(self, seen={})

    def probe(self) -> dict[str, list[int]]:
        return {PROBE: list(PROBE.encode())}

    def check_probe(self, stored: Mapping[str, Sequence[int]], where: str, *, image_tokens: bool = True) -> None:
        if dict(stored) != self.probe():
            raise InputError(f"{where}: made with another tokenizer")


def tokens_of(width: int) -> int:
    return max(1, width // 32)
