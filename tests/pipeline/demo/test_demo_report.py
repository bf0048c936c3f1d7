"""Table, gap, settings, recipes, attention maps: the parts of the demo's report against sums done by hand."""

import copy
import io
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from alignkd.pipeline.config.run_config import RunConfig
from alignkd.pipeline.demo.folder import DemoFolder, begin, made_once
from alignkd.pipeline.demo.models import TEACHER, write_configs
from alignkd.pipeline.demo.pictures.attention_maps import attention_maps, key_position
from alignkd.pipeline.demo.recipes import OBJECTIVES, ROWS, named_rows
from alignkd.pipeline.demo.results.report import markdown
from alignkd.pipeline.demo.results.table import differences, plain_table, table
from alignkd.pipeline.demo.run_config import run_config
from alignkd.pipeline.demo.settings import FULL, QUICK, DemoSettings
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
    "teacher": {"accuracy": 0.9, "by_type": {"compare": 1.0, "sum": 0.8, "position": 1.0}},
    "majority": {"accuracy": 0.125, "by_type": {"compare": 0.2, "sum": 0.1, "position": 0.15}},
    "students": {
        "supervised": {
            "label": "supervised only",
            "accuracy": [0.5, 0.7],
            "by_type": {"compare": [0.5, 0.6], "sum": [0.1, 0.3], "position": [0.9, 0.8]},
            "gap": None,
            "partner": "supervised",
            "difference": None,
        },
        "align_kd": {
            "label": "Align-KD",
            "accuracy": [0.7, 0.8],
            "by_type": {"compare": [0.5, 0.5], "sum": [0.4, 0.4], "position": [1.0, 0.9]},
            "gap": {"estimate": 0.5, "low": 0.312, "high": 0.704},
            "partner": "supervised",
            "difference": {"estimate": 0.15, "low": -0.02, "high": 0.31},
        },
    },
}


def test_table_gives_mean_spread_minimum_and_share_of_the_gap() -> None:
    assert table(REPORT) == [
        ["", "accuracy", "min", "of gap", "position", "sum", "compare"],
        ["teacher", "90.0", "", "", "100", "80", "100"],
        ["most frequent answer", "12.5", "", "", "15", "10", "20"],
        ["supervised only", "60.0 ± 14.1", "50.0", "", "85", "20", "55"],
        ["Align-KD", "75.0 ± 7.1", "70.0", "50 % (31..70)", "95", "40", "50"],
    ]
    assert differences(REPORT) == [
        ["", "compared with", "difference in points"],
        ["Align-KD", "supervised only", "+15.0 (-2.0..31.0)"],
    ]


def test_one_seed_has_no_spread_no_minimum_and_no_interval() -> None:
    report = copy.deepcopy(REPORT)
    for student in report["students"].values():
        student["accuracy"] = student["accuracy"][:1]
    for figure in ("gap", "difference"):
        report["students"]["align_kd"][figure] |= {"low": None, "high": None}
    heading, *_, last = table(report)
    assert heading[:3] == ["", "accuracy", "of gap"]
    assert last[:3] == ["Align-KD", "70.0", "50 %"]
    assert differences(report)[1][2] == "+15.0"


def test_plain_table_has_aligned_columns() -> None:
    heading, rule, *rows = plain_table(table(REPORT)).splitlines()
    ends = [heading.index(word) + len(word) for word in ("accuracy", "min", "of gap", "position", "sum", "compare")]
    assert rule == "-" * max(map(len, [heading, *rows]))
    for row, cells in zip(rows, table(REPORT)[1:], strict=True):
        assert row.startswith(cells[0])
        for end, cell in zip(ends, cells[1:], strict=True):
            assert row.ljust(ends[-1])[end - len(cell) : end] == cell


def test_rows_are_those_the_paper_compares() -> None:
    assert [row.name for row in named_rows(())] == ["supervised"]
    folder = DemoFolder(Path("demo"))
    others = ROWS.keys() - {row.name for row in OBJECTIVES}
    configs = {row.name: run_config(folder, FULL, row, folder.student(row.name, 0)) for row in named_rows(others)}
    weights = {name: set(LossConfig(**config["train"]["losses"]).weights) for name, config in configs.items()}
    vision = {"vision_all", "vision_top"}
    everything = {"supervised", "logit", "attention", *vision}
    assert weights == {
        "supervised": {"supervised"},
        "logit": {"supervised", "logit"},
        "logit_attention": {"supervised", "logit", "attention"},
        "logit_vision": {"supervised", "logit", *vision},
        "align_kd_tqt": everything,
        "align_kd_vqv": everything,
        "align_kd": everything,
        "layers": {"supervised", "attention"},
        "supervised_more": {"supervised"},
        "supervised_more_true": {"supervised"},
        "layers_more": {"supervised", "attention"},
    }
    stores = {name: config["store"] for name, config in configs.items()}
    pairs = {name: store["attention_pairs"] for name, store in stores.items() if "attention_pairs" in store}
    assert {name: found for name, found in pairs.items() if found != "tqv"} == {
        "align_kd_tqt": "tqt",
        "align_kd_vqv": "vqv",
    }
    layers = {name for name, store in stores.items() if isinstance(store["attention"], dict)}
    assert layers == others - pairs.keys() == {"layers", "layers_more", "supervised_more"}


@pytest.mark.parametrize("row", ROWS)
@pytest.mark.parametrize(
    "settings", [FULL, QUICK, replace(FULL, store={"profile": "stem"})], ids=["full", "quick", "stem"]
)
def test_every_row_is_a_valid_configuration(row: str, settings: DemoSettings) -> None:
    folder = DemoFolder(Path("demo"))
    RunConfig.model_validate(run_config(folder, settings, ROWS[row], folder.student(row, 0)))


def test_every_row_is_compared_with_a_row() -> None:
    assert {row.partner for row in ROWS.values()} <= ROWS.keys()


def test_rows_with_one_name_of_a_store_have_one_store() -> None:
    """A second row would silently train from the store of the first one."""
    for row in ROWS.values():
        assert all(other.store == row.store for other in ROWS.values() if other.store.name == row.store.name)


def test_an_unknown_row_is_named_with_the_known_ones() -> None:
    with pytest.raises(InputError, match=r"--rows: hints is not among supervised, logit, .*choose some of these"):
        named_rows(["align_kd", "hints"])


def test_a_row_changes_what_it_names_and_nothing_else() -> None:
    folder, plain = DemoFolder(Path("demo")), replace(ROWS["align_kd"], train={})
    row = replace(plain, train={"learning_rate": 0.5, "warmup_ratio": None}, losses={"logit": 0.25}, steps=1.5)
    before, after = (run_config(folder, FULL, recipe, folder.student("x", 3))["train"] for recipe in (plain, row))
    assert after["learning_rate"] == 0.5 and "warmup_ratio" not in after
    assert after["steps"] == 1.5 * before["steps"] == 1050
    assert after["losses"] == dict.fromkeys(before["losses"], 0.0) | {"supervised": 1.0, "logit": 0.25}
    kept = before.keys() - {"learning_rate", "warmup_ratio", "steps", "losses"}
    assert {key: after[key] for key in kept} == {key: before[key] for key in kept}


@pytest.mark.parametrize("quick", [True, False])
def test_the_page_of_a_quick_demo_names_the_command_of_the_whole_one(quick: bool, tmp_path: Path) -> None:
    flags = {
        "quick": quick,
        "ablation": True,
        "train_teacher": False,
        "rows": "",
        "objectives": "",
        "seeds": 2,
        "profile": None,
    }
    machine = {"cores": 2, "processor": "a", "torch": "b"}
    settings = {**asdict(QUICK if quick else FULL), **flags, "num_visual": 10, "machine": machine}
    page = markdown({**REPORT, "settings": settings, "seconds": {"total": 1.0}, "stores": {}}, {}, tmp_path)
    named = "Students of 24 steps are trained too little to compare" in page
    assert named == quick == ("`alignkd demo --ablation --seeds 2 --out FOLDER`" in page)


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
    data = write_dataset(tmp_path, num_scenes=3, pool="development", seed=1, questions_per_scene=1, single_turn=True)
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
