"""Memory of a forward pass over more than 4,096 positions, images of 1,024 vision tokens: no [H, L, L] anywhere."""

import json
from pathlib import Path

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

HEADS, NUM_IMAGES = 8, 4


@pytest.fixture(scope="module")
def long_sample(tmp_path_factory: pytest.TempPathFactory) -> tuple[VisionLanguageModel, Prepared]:
    folder: Path = tmp_path_factory.mktemp("long")
    names = tuple(f"{number}.png" for number in range(NUM_IMAGES))
    for number, name in enumerate(names):
        tiny_data.drawn(256, 256, seed=number).save(folder / name)
    teacher = tiny_families.build("qwen3_vl", folder / "teacher", hidden_size=64, heads=HEADS, num_layers=2)
    settings = json.loads((teacher / "processor_config.json").read_text())
    settings["image_processor"]["size"]["longest_edge"] = 256 * 256  # pixels; the tiny checkpoint takes fewer
    (teacher / "processor_config.json").write_text(json.dumps(settings))
    opened = open_checkpoint(teacher)
    turns = (Turn("human", "<image>\n" * NUM_IMAGES + "which?"), Turn("gpt", "the second, " * 20))
    with PreparationThreads(opened.preparation(), folder, 1) as threads:
        [sample] = threads.prepare([Sample(index=0, id="0", images=names, turns=turns, folder=folder)])
    return opened.load_model(), sample


@pytest.mark.parametrize("pairs", ["tqv", "tqt"])
def test_no_attention_of_all_positions_to_all(pairs: str, long_sample: tuple[VisionLanguageModel, Prepared]) -> None:
    model, sample = long_sample
    positions = sample.example.positions
    assert positions.length > 4096 and min(positions.tokens_of_image) >= 1024
    capture = Capture(model, StoreConfig(path="unused", profile="compact", attention_pairs=pairs))
    with LiveBytes() as live:
        [captured] = capture([sample])
    assert captured.attention is not None
    blocks, rows, heads, columns = captured.attention.wait()[""].shape
    assert (blocks, heads) == (1, HEADS) and rows == len(positions.tqv_query_positions)
    assert columns == len(positions.attention_cols(pairs))
    # one byte for each head and pair of positions would be more
    assert live.peak < HEADS * positions.length**2
