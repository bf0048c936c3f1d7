"""Asks a checkpoint one question and generates the answer token by token."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from alignkd.disk.opening import read_regular
from alignkd.vlm.data.read_json import read_json
from alignkd.vlm.data.turn_checks import IMAGE_PLACEHOLDER
from alignkd.vlm.data.turns import Turn
from alignkd.vlm.errors import InputError, SampleError, unreadable
from alignkd.vlm.families.family import Checkpoint, VisionLanguageModel
from alignkd.vlm.families.generation import stream_greedy
from alignkd.vlm.families.open import open_checkpoint
from alignkd.vlm.hardware.device_report import device_report
from alignkd.vlm.hardware.devices import DtypeName, Quantization, usable_device
from alignkd.vlm.hardware.memory_faults import memory_errors
from alignkd.vlm.inputs.examples import Example, Preparation
from alignkd.vlm.settings import ProcessorKind

UNFINISHED = "\ufffd"  # a character with missing bytes decodes to this


@dataclass(frozen=True, kw_only=True)
class Question:
    """A question, the checkpoint, and the settings of generation.

    Attributes:
        checkpoint: folder or hub id.
        text: the question; None with template `plain`, which captions an image and takes no question.
        images: image files, in the order of their `<image>`.
        template: prompt template with which the checkpoint was trained; None is the checkpoint's own.
        max_new_tokens: longest answer; shorter if the model's positions end before.
        vision_config: folder with the vision tower's config.json, overriding the checkpoint's `mm_vision_tower`.
        processor: image processor of models of transformers; `pil` needs no torchvision.
        dtype: dtype of the weights; None is the checkpoint's own on a GPU and float32 on the CPU.
        device: torch device; None takes a GPU if there is one.
        quantization: quantisation of the decoder's linear layers.
    """

    checkpoint: str | Path
    text: str | None
    images: tuple[Path, ...] = ()
    template: str | None = None
    max_new_tokens: int = 256
    vision_config: Path | None = None
    processor: ProcessorKind = "auto"
    dtype: DtypeName | None = None
    device: str | None = None
    quantization: Quantization = "none"


@dataclass(frozen=True, kw_only=True)
class Reply:
    """The answer, and the time and tokens that it took.

    Attributes:
        answer: the answer without surrounding blanks.
        stopped: `end` after an end token, `max_new_tokens`, or `context` if the model's positions ended.
        prompt_tokens: positions before the answer, vision tokens included.
        new_tokens: tokens of the answer, without the end token.
        load_seconds: time for reading the checkpoint.
        first_token_seconds: time of the prompt's forward pass, including the vision tower.
        seconds: time from the prompt to the last token.
        tokens_per_second: rate of the tokens after the first; 0 without any.
    """

    answer: str
    stopped: Literal["end", "max_new_tokens", "context"]
    prompt_tokens: int
    new_tokens: int
    device: str
    dtype: str
    quantization: Quantization
    load_seconds: float
    first_token_seconds: float
    seconds: float
    tokens_per_second: float


def ask(
    question: Question,
    *,
    on_text: Callable[[str], None] = lambda text: None,
    on_notice: Callable[[str], None] = lambda text: None,
) -> Reply:
    """Generate an answer greedily, with a KV cache.

    Args:
        on_text: called with each new piece of the answer.
        on_notice: called with the line that names the device, and with warnings about it.

    Raises:
        InputError: unusable checkpoint, image or question, or a prompt longer than the model's positions.
    """
    started = time.perf_counter()
    device = usable_device(question.device)
    checkpoint = open_checkpoint(
        question.checkpoint, vision_config=question.vision_config, weights=False, processor=question.processor
    )
    dtype = question.dtype or dtype_on(device, checkpoint)
    # The prompt is built first: its errors show within a second, while loading the weights takes a minute.
    builder = checkpoint.preparation(question.template)
    prompt = _prompt(builder, question)
    line, warnings = device_report(device, getattr(torch, dtype), chosen=question.device is not None)
    for text in (line, *warnings):
        on_notice(text)
    model = checkpoint.load_model(dtype=getattr(torch, dtype), device=device, quantization=question.quantization)
    room = model.config.max_positions - prompt.positions.length
    if room < 1:
        raise InputError(
            f"the prompt has {prompt.positions.length} tokens, {question.checkpoint} takes "
            f"{model.config.max_positions}; ask a shorter question"
        )
    loaded = time.perf_counter()
    limit = min(question.max_new_tokens, room)
    with memory_errors("choose a smaller --dtype, --quantization int8 or nf4, or --device cpu"):
        ids, times = _generate(model, prompt, builder, limit, on_text)
    ended = time.perf_counter()
    decoding = times[-1] - times[0] if times else 0.0
    return Reply(
        answer=builder.decode(ids).strip(),
        stopped="end" if len(ids) < limit else "max_new_tokens" if limit == question.max_new_tokens else "context",
        prompt_tokens=prompt.positions.length,
        new_tokens=len(ids),
        device=str(device),
        dtype=dtype,
        quantization=question.quantization,
        load_seconds=loaded - started,
        first_token_seconds=(times[0] if times else ended) - loaded,
        seconds=ended - loaded,
        tokens_per_second=(len(times) - 1) / decoding if decoding else 0.0,
    )


class TextStream:
    """The text of a growing list of tokens, in pieces that are only appended.

    A piece is held back while the text ends within a character: several byte tokens can form one character.
    """

    def __init__(self, decode: Callable[[list[int]], str], on_text: Callable[[str], None]) -> None:
        self._decode, self._on_text = decode, on_text
        self._shown = ""

    def show(self, ids: list[int], *, is_last: bool = False) -> None:
        """Pass on the text that `ids` add to the text shown so far."""
        text = self._decode(ids)
        if not is_last and text.endswith(UNFINISHED):
            return
        if new := text[len(self._shown) :]:
            self._on_text(new)
            self._shown = text


def _generate(
    model: VisionLanguageModel, prompt: Example, builder: Preparation, limit: int, on_text: Callable[[str], None]
) -> tuple[list[int], list[float]]:
    """Token ids of the answer, and the time of each."""
    ids: list[int] = []
    times: list[float] = []
    stream = TextStream(builder.decode, on_text)
    for token in stream_greedy(model, prompt, max_new_tokens=limit, stop_ids=builder.stop_ids):
        ids.append(token)
        times.append(time.perf_counter())
        stream.show(ids)
    stream.show(ids, is_last=True)
    return ids, times


def _prompt(builder: Preparation, question: Question) -> Example:
    """The prompt in the format of training; if the question has no placeholder, one per image is put first."""
    text, paths = question.text, question.images
    if (text is None) != (question.template == "plain"):
        raise InputError(
            "template 'plain' captions an image and takes no question; leave the question out, or use template v1"
            if text is not None
            else "no question; write it after the options"
        )
    if question.template == "plain" and not paths:
        raise InputError("template 'plain' captions an image; give one with --image")
    if IMAGE_PLACEHOLDER not in (text or ""):
        text = f"{IMAGE_PLACEHOLDER}\n" * len(paths) + (text or "")
    turns = [Turn("human", text or "")]
    files = [_read_image(path) for path in paths]
    try:
        return builder.build_question(turns, files)
    except SampleError as error:
        raise InputError(f"{', '.join(map(str, paths)) or 'the question'}: {error}") from error


def _read_image(path: Path) -> bytes:
    try:
        return read_regular(path)
    except OSError as error:
        raise unreadable(path, error, "image cannot be read") from error


def dtype_on(device: torch.device, checkpoint: Checkpoint) -> DtypeName:
    """The default dtype of a checkpoint: its own on a GPU, float32 on a CPU.

    Raises:
        InputError: the checkpoint's configuration is unusable.
    """
    if device.type == "cpu":
        return "float32"
    raw = read_json(checkpoint.folder / "config.json")
    saved = next((raw[key] for key in ("dtype", "torch_dtype") if key in raw), None)  # the newer name is the first
    return saved if saved in ("bfloat16", "float16") else "float32"
