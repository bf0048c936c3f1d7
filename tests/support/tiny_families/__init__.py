"""Tiny random checkpoints of many vision-language families, in the layout of the hub.

    folder = tiny_families.build("qwen3_vl", tmp_path / "teacher", seed=1, hidden_size=64, heads=4)

A folder holds config.json, model.safetensors, generation_config.json, tokenizer and processor files and the chat
template: what `AutoModelForImageTextToText` and `AutoProcessor` load. Checkpoints of one family have the same tokenizer
and the same processor whatever their sizes, so that any two of them are a teacher and a student.
"""

from functools import partial
from pathlib import Path
from typing import Any, Final

from alignkd.vlm.torchvision_import import make_torchvision_importable

make_torchvision_importable()  # before anything imports transformers

from tiny_families import gemma, glm, idefics, internvl, lfm2, llava, mistral, paligemma, qwen  # noqa: E402
from tiny_families.builder import Builder, Family, build_family  # noqa: E402

_FAMILIES: Final[dict[str, Family]] = {
    "llava": llava.LLAVA_15,
    "llava_next": llava.LLAVA_NEXT,
    "llava_onevision": llava.LLAVA_ONEVISION,
    "qwen2_5_vl": qwen.QWEN2_5_VL,
    "qwen3_vl": qwen.QWEN3_VL,
    "smolvlm": idefics.SMOLVLM,
    "internvl": internvl.INTERNVL,
    "gemma3": gemma.GEMMA3,
    "mistral3": mistral.MISTRAL3,
    "qwen2_vl": qwen.QWEN2_VL,
    "idefics3": idefics.IDEFICS3,
    "ministral3": mistral.MINISTRAL3,
    "lfm2_vl": lfm2.LFM2_VL,
    "qwen3_5": qwen.QWEN3_5,
    "glm4v": glm.GLM_4V,
    "gemma4": gemma.GEMMA4,
    "paligemma": paligemma.PALIGEMMA,
}
FAMILIES: Final[dict[str, Builder]] = {name: partial(build_family, family) for name, family in _FAMILIES.items()}
"""Name of a family -> function that writes a checkpoint; see `builder.build_family` for its arguments."""

NINE: Final = tuple(_FAMILIES)[:9]
"""The families that every end-to-end test goes through."""


def build(name: str, folder: Path, **options: Any) -> Path:
    """Write a checkpoint of the family `name` to `folder`; `builder.build_family` has the options."""
    return FAMILIES[name](folder, **options)
