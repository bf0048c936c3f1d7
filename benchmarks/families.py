"""What holds for tiny checkpoints of every family of transformers: the table of docs/models.md.

    python benchmarks/families.py

Checkpoints with random weights are made by tests/support/tiny_families, opened and loaded as `alignkd models` does.
"""

import sys
import tempfile
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "support"))

import tiny_families

from alignkd.vlm.data.turns import Turn
from alignkd.vlm.errors import InputError
from alignkd.vlm.families.open import open_checkpoint
from alignkd.vlm.stem.designs import design_or_reason

SIZE = (640, 480)
TURNS = [Turn("human", "<image>\nwhat is it?"), Turn("gpt", "a cat")]


def main() -> None:
    torch.set_num_threads(1)
    print("| family | first attention layer | vision tokens | mask | largest difference of a self-check | stem |")
    print("|:--|--:|:--|:--|--:|:--|")
    with tempfile.TemporaryDirectory() as folder:
        for name in tiny_families.FAMILIES:
            print(row(name, Path(folder) / name))


def row(name: str, folder: Path) -> str:
    """One line of the table."""
    checkpoint = open_checkpoint(tiny_families.build(name, folder))
    label = f"`{name}`"
    try:
        positions = checkpoint.preparation().tokenize(TURNS, [SIZE]).positions
        model = checkpoint.load_model()
    except InputError as error:
        return f"| {label} | | | | refused: {str(error).partition(': ')[2].split(';')[0]} | |"
    vision = positions.vision_positions
    contiguous = "contiguous" if vision[-1] - vision[0] + 1 == len(vision) else "text between them"
    worst = max(finding.difference / finding.limit for finding in model.findings)
    stem = design_or_reason(checkpoint.config)
    return (
        f"| {label} | {model.config.attention_layer} | {contiguous} | {'yes' if model.needs_mask else 'no'} "
        f"| {100 * worst:.2g} % of the limit | {'no' if isinstance(stem, str) else 'yes'} |"
    )


if __name__ == "__main__":
    main()
