"""Memory of a pass that stores attention of many layers: one layer's rows are on the device at a time."""

import json
from pathlib import Path
from typing import Any

import pytest
import tiny_data
import tiny_families
from live_bytes import LiveBytes

from alignkd.teacher_dump.preparation import PreparationThreads, Prepared
from alignkd.teacher_dump.settings.store import StoreConfig
from alignkd.teacher_dump.targets.capture import Capture
from alignkd.vlm.data.sample import Sample
from alignkd.vlm.data.turns import Turn
from alignkd.vlm.families.family import VisionLanguageModel
from alignkd.vlm.families.open import open_checkpoint
from alignkd.vlm.inputs.position_map import AttentionPairs

HEADS, HEAD_SIZE, LAYERS = 8, 4, 6


@pytest.fixture(scope="module")
def long_samples(tmp_path_factory: pytest.TempPathFactory) -> tuple[VisionLanguageModel, Prepared, Prepared]:
    """A model, a sample with many text queries, and one whose text is before its image, so that it has few."""
    folder: Path = tmp_path_factory.mktemp("long")
    tiny_data.drawn(256, 256, seed=0).save(folder / "0.png")
    teacher = tiny_families.build("qwen3_vl", folder / "teacher", hidden_size=32, heads=HEADS, num_layers=LAYERS)
    settings = json.loads((teacher / "processor_config.json").read_text())
    settings["image_processor"]["size"]["longest_edge"] = 256 * 256
    (teacher / "processor_config.json").write_text(json.dumps(settings))
    opened = open_checkpoint(teacher)
    after = (Turn("human", "<image>\nwhich?"), Turn("gpt", "the second, " * 100))
    before = (Turn("human", f"{'the second, ' * 100}\n<image>"), Turn("gpt", "yes"))
    with PreparationThreads(opened.preparation(), folder, 1) as threads:
        many, few = threads.prepare(
            [
                Sample(index=number, id=str(number), images=("0.png",), turns=turns, folder=folder)
                for number, turns in enumerate((after, before))
            ]
        )
    return opened.load_model(), many, few


def peak(model: VisionLanguageModel, sample: Prepared, attention: Any) -> tuple[int, int]:
    """The highest bytes alive during a pass, and the bytes of the stored attention."""
    settings = {"attention": attention, "vision_top": "none", "vision_all": "none", "logits": {"kind": "none"}}
    capture = Capture(model, StoreConfig(path="unused", **settings))
    with LiveBytes() as live:
        [captured] = capture([sample])
    parts = [
        part for layers in captured.attention_layers.values() for layer in layers for part in layer.wait().values()
    ]
    return live.peak, sum(part.nbytes for part in parts)


@pytest.mark.parametrize("pairs", ["tqv", "vqv"])
def test_more_layers_take_their_stored_bytes_and_no_more_rows(
    long_samples: tuple[VisionLanguageModel, Prepared, Prepared], pairs: AttentionPairs
) -> None:
    model, sample, _ = long_samples
    positions = sample.example.positions
    one_layer = 4 * HEADS * len(positions.attention_rows(pairs)) * len(positions.vision_positions)
    choice = {"pairs": pairs, "heads": "mean", "codec": "sqrt_u8"}
    first, stored_first = peak(model, sample, {"layers": [0], **choice})
    every, stored = peak(model, sample, {"layers": "0%-100%", **choice})
    assert len(model.config.attention_layers) == LAYERS
    of_a_layer = 2 * 4 * HEADS * HEAD_SIZE * positions.length  # its queries and keys
    assert every < first + (stored - stored_first) + (LAYERS - 1) * of_a_layer + one_layer // 4
    assert first > one_layer  # the measure sees the rows of a layer


def test_no_attention_of_all_positions_to_all(
    long_samples: tuple[VisionLanguageModel, Prepared, Prepared],
) -> None:
    model, _, sample = long_samples
    nothing, _ = peak(model, sample, "none")
    every, _ = peak(model, sample, {"layers": "0%-100%", "pairs": "tqv"})
    # one byte for each head and pair of positions would be more
    assert every - nothing < HEADS * sample.example.positions.length**2
