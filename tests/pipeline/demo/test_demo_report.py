"""Table, gap, settings, recipes, attention maps: the parts of the demo's report against sums done by hand."""

import io
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from alignkd.pipeline.demo.folder import DemoFolder, begin, made_once
from alignkd.pipeline.demo.models import TEACHER, write_configs
from alignkd.pipeline.demo.pictures.attention_maps import attention_maps, key_position
from alignkd.pipeline.demo.report import gap_recovered, plain_table, table
from alignkd.pipeline.demo.settings import FULL, recipes
from alignkd.pipeline.demo.world.dataset import write_dataset
from alignkd.student_train.objective.settings import LossConfig
from alignkd.vlm.data.images import read_images
from alignkd.vlm.data.open import load_samples
from alignkd.vlm.data.turns import Turn
from alignkd.vlm.errors import InputError
from alignkd.vlm.families.mobilevlm.model.config import load_config
from alignkd.vlm.families.mobilevlm.weights.checkpoint import load_model, load_preparation
from alignkd.vlm.families.mobilevlm.weights.loading import new_model
from alignkd.vlm.families.mobilevlm.weights.saving import save_model
from alignkd.vlm.inputs.batch import collate_sequences

REPORT: dict[str, Any] = {
    "teacher": {"accuracy": 0.9, "by_type": {"sum": 0.8, "position": 1.0}},
    "students": {
        "supervised": {"accuracy": [0.5, 0.7], "by_type": {"sum": [0.1, 0.3], "position": [0.9, 0.8]}},
        "align_kd": {"accuracy": [0.7, 0.8], "by_type": {"sum": [0.4, 0.4], "position": [1.0, 0.9]}},
    },
}


def test_table_gives_mean_spread_and_share_of_the_gap() -> None:
    assert table(REPORT) == [
        ["", "accuracy", "of gap", "position", "sum"],
        ["teacher", "90.0", "", "100", "80"],
        ["supervised only", "60.0 ± 14.1", "", "85", "20"],
        ["Align-KD", "75.0 ± 7.1", "50 %", "95", "40"],
    ]


def test_plain_table_has_aligned_columns() -> None:
    heading, rule, *rows = plain_table(REPORT).splitlines()
    ends = [heading.index(word) + len(word) for word in ("accuracy", "of gap", "position", "sum")]
    assert rule == "-" * max(map(len, [heading, *rows]))
    for row, cells in zip(rows, table(REPORT)[1:], strict=True):
        assert row.startswith(cells[0])
        for end, cell in zip(ends, cells[1:], strict=True):
            assert row.ljust(ends[-1])[end - len(cell) : end] == cell


def test_there_is_no_share_of_a_gap_that_is_not_there() -> None:
    assert gap_recovered([0.8], [0.7], 0.9) == pytest.approx(0.5)
    assert gap_recovered([0.6], [0.7], 0.9) == pytest.approx(-0.5)
    assert gap_recovered([0.8], [0.9], 0.9) is None


def test_recipes_are_the_rows_the_paper_compares() -> None:
    assert [row.name for row in recipes(ablation=False)] == ["supervised", "align_kd"]
    weights = {row.name: set(LossConfig(**row.losses(FULL)).weights) for row in recipes(ablation=True)}
    vision = {"vision_all", "vision_top"}
    everything = {"supervised", "logit", "attention", *vision}
    assert weights == {
        "supervised": {"supervised"},
        "logit": {"supervised", "logit"},
        "logit_attention": {"supervised", "logit", "attention"},
        "logit_vision": {"supervised", "logit", *vision},
        "align_kd": everything,
        "align_kd_tqt": everything,
        "align_kd_vqv": everything,
    }
    assert [row.pairs for row in recipes(ablation=True)] == ["tqv"] * 5 + ["tqt", "vqv"]


def test_other_settings_name_each_difference_with_both_values(tmp_path: Path) -> None:
    folder = DemoFolder(tmp_path / "demo")
    begin(folder, {"steps": 700, "seed": 0})
    begin(folder, {"steps": 700, "seed": 0})
    with pytest.raises(InputError, match="steps is 700 there, 60 requested; width is absent there, 3 requested"):
        begin(folder, {"steps": 60, "seed": 0, "width": 3})


def test_a_folder_is_made_whole_or_not_at_all(tmp_path: Path) -> None:
    target = tmp_path / "parts" / "data"

    def stopped(out: Path) -> None:
        out.mkdir()
        (out / "half").touch()
        raise KeyboardInterrupt

    def complete(out: Path) -> None:
        out.mkdir()
        (out / "whole").touch()

    with pytest.raises(KeyboardInterrupt):
        made_once(target, stopped)
    assert not target.exists()
    made_once(target, complete)
    assert [path.name for path in target.iterdir()] == ["whole"]
    made_once(target, stopped)
    assert [path.name for path in target.parent.iterdir()] == ["data"]


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained teacher."""
    folder = tmp_path_factory.mktemp("maps") / "teacher"
    write_configs(folder, TEACHER)
    save_model(new_model(load_config(folder), seed=0), folder, tokenizer_from=folder)
    return folder


@pytest.mark.parametrize(
    ("question", "word"),
    [
        ("what digit is top-left?", "top-left"),
        ("how many 3s are there?", "3"),
        ("sum of the bottom row?", "bottom"),
        ("what is the left column sum?", "left"),
        ("is there an 8?", "8"),
        ("which digit is largest?", "?"),
    ],
)
def test_the_telling_word_is_what_is_asked_about(teacher: Path, question: str, word: str) -> None:
    builder = load_preparation(teacher, template="v1")
    picture = png(builder.image_processor.image_size)
    example = builder.build_question([Turn("human", f"<image>\n{question}")], [picture])
    found, position = key_position(example, builder.tokenizer)
    assert found == word
    # The spliced sequence has 36 vision tokens where the ids have one placeholder.
    before = position - 35
    assert builder.tokenizer.piece(int(example.input_ids[before])).strip("▁") == word


def png(side: int) -> bytes:
    """A white picture."""
    buffer = io.BytesIO()
    Image.new("RGB", (side, side), "white").save(buffer, format="PNG")
    return buffer.getvalue()


def test_maps_are_the_models_own_first_layer_attention(teacher: Path, tmp_path: Path) -> None:
    """Against transformers' full attention matrix, the picture against the file's pixels."""
    data = write_dataset(tmp_path, num_scenes=3, pool="held_out", seed=1, questions_per_scene=1, single_turn=True)
    samples = [sample for sample in load_samples(data.conversations) if sample.images]
    maps = attention_maps(teacher, samples, data.images, template="v1", vision_config=None)
    builder, model = load_preparation(teacher, template="v1"), load_model(teacher)
    model.model.config._attn_implementation = "eager"
    for sample, found in zip(samples, maps, strict=True):
        example = builder.build_question(sample.turns[:1], read_images(data.images, sample.images))
        batch = collate_sequences([example])
        with torch.no_grad():
            embeds_BLD = model.embed(batch, model.encode_images(batch.images))
            output = model.model(inputs_embeds=embeds_BLD, use_cache=False, output_attentions=True)
        word, row = key_position(example, builder.tokenizer)
        vision = example.positions.vision_positions
        expected = output.attentions[0][0, :, row, vision].mean(dim=0).reshape(6, 6)
        assert found.word == word
        torch.testing.assert_close(torch.from_numpy(found.shares_hw), expected, rtol=1e-5, atol=1e-7)
        assert found.pixels_HWC.shape == (72, 72, 3)
        assert found.pixels_HWC.max() <= 1
