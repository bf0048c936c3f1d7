"""What `alignkd plan` computes for pairs of published shapes: the table of docs/models.md.

    python benchmarks/pair_memory.py

The shapes are those of the models' published configurations, written here by hand: no file of a model is read. The
parameter counts that follow from them are printed, so that they can be compared with the published ones (8.77, 2.13,
12.2 and 4.3 billion).
The data set is assumed: one image and 700 tokens per sample.
"""

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import click
from click.testing import CliRunner

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "support"))

import tiny_families

from alignkd.pipeline.cli import main as alignkd
from alignkd.vlm.families.open import open_checkpoint


def qwen3_vl(hidden: int, inner: int, layers: int, heads: int, tower: dict[str, Any], *, tied: bool) -> dict[str, Any]:
    """Configuration of a Qwen3-VL model."""
    text = {
        "model_type": "qwen3_vl_text", "hidden_size": hidden, "intermediate_size": inner, "num_hidden_layers": layers,
        "num_attention_heads": heads, "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 151936,
        "max_position_embeddings": 262144, "tie_word_embeddings": tied,
    }  # fmt: skip
    vision = {
        "model_type": "qwen3_vl", "patch_size": 16, "spatial_merge_size": 2, "temporal_patch_size": 2, "num_heads": 16,
        "num_position_embeddings": 2304, "out_hidden_size": hidden, **tower,
    }  # fmt: skip
    return {
        "model_type": "qwen3_vl",
        "text_config": text,
        "vision_config": vision,
        "tie_word_embeddings": tied,
    }


def gemma3(hidden: int, inner: int, layers: int, heads: int) -> dict[str, Any]:
    """Configuration of a Gemma 3 model."""
    text = {
        "model_type": "gemma3_text", "hidden_size": hidden, "intermediate_size": inner, "num_hidden_layers": layers,
        "num_attention_heads": heads, "num_key_value_heads": heads // 2, "head_dim": 256, "vocab_size": 262208,
        "sliding_window": 1024, "max_position_embeddings": 131072,
    }  # fmt: skip
    vision = {
        "model_type": "siglip_vision_model", "hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 27,
        "num_attention_heads": 16, "image_size": 896, "patch_size": 14,
    }  # fmt: skip
    return {
        "model_type": "gemma3", "text_config": text, "vision_config": vision, "mm_tokens_per_image": 256,
    }  # fmt: skip


LARGE = {"depth": 27, "hidden_size": 1152, "intermediate_size": 4304, "deepstack_visual_indexes": [8, 16, 24]}
SMALL = {"depth": 24, "hidden_size": 1024, "intermediate_size": 4096, "deepstack_visual_indexes": [5, 11, 17]}
# recipe -> teacher, student, vision tokens of the image that is assumed
PAIRS: dict[str, tuple[dict[str, Any], dict[str, Any], int]] = {
    "qwen3-vl-8b-to-2b": (
        qwen3_vl(4096, 12288, 36, 32, LARGE, tied=False), qwen3_vl(2048, 6144, 28, 16, SMALL, tied=True), 300
    ),
    "gemma3-12b-to-4b": (gemma3(3840, 15360, 48, 16), gemma3(2560, 10240, 34, 8), 256),
}  # fmt: skip


@click.command()
def main() -> None:
    """Print parameters and memory of each pair."""
    with tempfile.TemporaryDirectory() as root:
        for recipe, (teacher, student, image_tokens) in PAIRS.items():
            plan_of(Path(root) / recipe, recipe, teacher, student, image_tokens)


def plan_of(folder: Path, recipe: str, teacher: dict[str, Any], student: dict[str, Any], image_tokens: int) -> None:
    """Print the plan of a recipe with these models in the place of its own."""
    names = {}
    for role, config in (("teacher", teacher), ("student", student)):
        tiny_families.build(config["model_type"], folder / role)  # tokenizer and processor, which a plan needs
        (folder / role / "model.safetensors").unlink()
        path = folder / role / "config.json"
        ids = {name: value for name, value in json.loads(path.read_text()).items() if "token_i" in name}
        path.write_text(json.dumps(config | ids))
        size = open_checkpoint(folder / role).size()
        names[role] = str(folder / role)
        print(f"{recipe} {role}: {size.parameters['total'] / 1e9:.2f} G parameters")
    text = CliRunner().invoke(alignkd, ["configs", recipe]).stdout
    for line in text.splitlines():
        if line.strip().startswith("checkpoint:"):
            role = "teacher" if str(names["teacher"]) not in text else "student"
            text = text.replace(line, f"  checkpoint: {names[role]}", 1)
    (folder / "run.yaml").write_text(text)
    options = [
        "--samples",
        "100000",
        "--mean-tokens",
        "700",
        "--image-tokens",
        str(image_tokens),
        "--gpu-memory",
        "24GiB",
    ]
    shown = CliRunner().invoke(alignkd, ["plan", str(folder / "run.yaml"), *options])
    if shown.exception is not None:
        raise shown.exception
    print(shown.output)


if __name__ == "__main__":
    main()
