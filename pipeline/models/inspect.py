"""What `alignkd models` shows of a checkpoint beside its sizes: its inputs, what is stored, and its self-checks."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from alignkd.pipeline.console.printing import format_bytes
from alignkd.storage.codecs import get_codec
from alignkd.storage.codecs.settings import PROFILES
from alignkd.vlm.data.read_json import read_json
from alignkd.vlm.data.turns import Turn
from alignkd.vlm.errors import ImageError, InputError
from alignkd.vlm.families.family import Checkpoint
from alignkd.vlm.hardware.devices import Quantization, usable_device
from alignkd.vlm.inputs.examples import ImageSize, Preparation
from alignkd.vlm.inputs.position_map import PositionMap
from alignkd.vlm.weights.hub import cached_checkpoint

# Width and height in pixels: a square, a photo, a screenshot, a tall page.
SIZES: tuple[ImageSize, ...] = ((336, 336), (640, 480), (1280, 720), (800, 1200))
_QUESTION = "<image>\nWhat is in the picture, and where is it?"
_ANSWER = "A small dog is lying on the sofa next to a window. It is asleep."


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """How a checkpoint sees a sample.

    Attributes:
        family: name of the family.
        model_type: name of the architecture in `config.json`.
        processor, template: fingerprints of the image processor and the prompt template.
        tokens_of_image: "WIDTH x HEIGHT" -> vision tokens; None where the processor refuses the size.
        stored: "WIDTH x HEIGHT" -> profile -> bytes of attention and vision targets of one sample with one image and a
            short question and answer.
        warnings: what a user should know of the template.
    """

    family: str
    model_type: str
    processor: str
    template: str
    tokens_of_image: dict[str, int | None]
    stored: dict[str, dict[str, int]]
    warnings: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Checked:
    """Result of the self-checks.

    Attributes:
        state: `passed`, `failed`, `not run`.
        lines: one line per comparison, or the reason.
    """

    state: str
    lines: tuple[str, ...]


def has_inputs(checkpoint: Checkpoint) -> bool:
    """Whether tokenizer and processor files are there; the sizes of a model need only `config.json`."""
    return any((checkpoint.folder / name).is_file() for name in ("tokenizer.model", "tokenizer.json"))


def inputs_of(checkpoint: Checkpoint) -> Inputs:
    """The inputs of a checkpoint; needs no weights.

    Raises:
        InputError: its tokenizer, template or processor is unusable.
    """
    preparation = checkpoint.preparation()
    found = {f"{width} x {height}": _positions(preparation, (width, height)) for width, height in SIZES}
    return Inputs(
        family=checkpoint.family,
        model_type=str(read_json(checkpoint.folder / "config.json").get("model_type")),
        processor=preparation.fingerprint["image_processor"],
        template=preparation.template_fingerprint,
        tokens_of_image={size: None if at is None else sum(at.tokens_of_image) for size, at in found.items()},
        stored={size: stored_bytes(checkpoint, at) for size, at in found.items() if at is not None},
        warnings=tuple(preparation.warnings()),
    )


def stored_bytes(checkpoint: Checkpoint, positions: PositionMap) -> dict[str, int]:
    """Profile -> bytes of the attention and vision targets of one sample, without logits and without headers."""
    heads, width = checkpoint.config.num_heads, checkpoint.config.hidden_size
    P, Q = len(positions.vision_positions), len(positions.tqv_query_positions)
    shapes = {"attention": (Q, heads, P), "vision_all": (P, width)}
    return {
        name: sum(_encoded_bytes(codecs[target], shape) for target, shape in shapes.items())
        for name, codecs in PROFILES.items()
        if name != "stem"
    }


def self_checks(
    checkpoint: Checkpoint, *, dtype: torch.dtype, device: str | None, quantization: Quantization, fetch: bool
) -> Checked:
    """Load the model, which compares it with itself.

    Args:
        device: torch device; None takes a GPU if there is one.
        fetch: fetch the weights of a hub id if they are not on this machine.

    Raises:
        InputError: no such device.
    """
    if not fetch and cached_checkpoint(checkpoint.name) is None:
        return Checked(state="not run", lines=("the weights are not on this machine; --check fetches and checks them",))
    chosen = usable_device(device)
    try:
        model = checkpoint.load_model(dtype=dtype, device=chosen, quantization=quantization)
    except InputError as error:
        return Checked(state="failed", lines=(str(error),))
    lines = tuple(map(str, model.findings)) or ("this family's code is compared with the original by tests",)
    return Checked(state="passed", lines=lines)


def inputs_lines(inputs: Inputs) -> list[str]:
    """The inputs for a terminal."""
    tokens = ", ".join(
        f"{size}: {'refused' if count is None else count}" for size, count in inputs.tokens_of_image.items()
    )
    stored = []
    for profile in next(iter(inputs.stored.values()), {}):
        sizes = (f"{size}: {format_bytes(profiles[profile])}" for size, profiles in inputs.stored.items())
        stored.append(f"stored, {profile:<7}   {', '.join(sizes)}")
    return [
        f"family            {inputs.family} ({inputs.model_type})",
        f"image processor   {inputs.processor}",
        f"template          {inputs.template}",
        f"tokens of images  {tokens}",
        *stored,
        "                  attention and vision targets of a sample with that image and a short answer, no logits",
        *(f"warning: {warning}" for warning in inputs.warnings),
    ]


def checked_lines(checked: Checked) -> list[str]:
    """The self-checks for a terminal."""
    return [f"self-checks       {checked.state}", *(f"  {line}" for line in checked.lines)]


def _positions(preparation: Preparation, size: ImageSize) -> PositionMap | None:
    try:
        return preparation.tokenize([Turn("human", _QUESTION), Turn("gpt", _ANSWER)], [size]).positions
    except ImageError:
        return None


def _encoded_bytes(codec: str, shape: Sequence[int]) -> int:
    parts: dict[str, Any] = get_codec(codec).parts(tuple(shape))
    return sum(int(torch.Size(part).numel()) * dtype.itemsize for dtype, part in parts.values())
