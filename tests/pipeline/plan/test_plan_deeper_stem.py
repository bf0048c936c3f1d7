"""The plan of a stem with whole layers: against torch's own counts, and what it recommends at the real shapes."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from live_bytes import LiveBytes
from torch.utils.flop_counter import FlopCounterMode

from alignkd.pipeline.config.run_config import RunConfig
from alignkd.pipeline.plan.make import make_plan
from alignkd.pipeline.plan.memory.shapes import ModelShapes
from alignkd.pipeline.plan.memory.stem import stem_pass_bytes
from alignkd.pipeline.plan.report import plan_lines
from alignkd.pipeline.plan.result import Plan, PlanOptions
from alignkd.pipeline.plan.time.operations import stem_flops
from alignkd.vlm.families.mobilevlm.model.config import VLMConfig, load_config
from alignkd.vlm.families.mobilevlm.model.sizes import model_size
from alignkd.vlm.inputs.batch import SequenceBatch
from alignkd.vlm.stem.stem import TeacherStem, stem_shapes

TERABYTE = 10**12
SHAPES: list[dict[str, Any]] = [
    {"hidden_size": 256, "intermediate_size": 700, "num_attention_heads": 4, "num_key_value_heads": 4},
    {"hidden_size": 512, "intermediate_size": 640, "num_attention_heads": 8, "num_key_value_heads": 2},
]
ReadConfig = Callable[..., VLMConfig]


@pytest.fixture
def tiny(golden: Path, tmp_path: Path) -> ReadConfig:
    """tiny(**shapes): the golden student's configuration with other shapes and five layers."""

    def read(**changes: Any) -> VLMConfig:
        raw = json.loads((golden / "student/config.json").read_text())
        (tmp_path / "config.json").write_text(json.dumps(raw | changes | {"num_hidden_layers": 5}))
        return load_config(tmp_path, vision_config=golden / "clip")

    return read


def stem_and_batch(config: VLMConfig, depth: int, dtype: torch.dtype) -> tuple[TeacherStem, SequenceBatch]:
    """A stem of random weights, and three samples of 96 tokens without an image."""
    shapes = stem_shapes(config, lm_head=False, depth=depth)
    stem = TeacherStem(config, {key: torch.randn(shape, dtype=dtype) for key, shape in shapes.items()}, depth=depth)
    ids = torch.randint(1, config.vocab_size, (3, 96))
    batch = SequenceBatch(
        input_ids_BL=ids,
        labels_BL=ids,
        vision_mask_BL=torch.zeros_like(ids, dtype=torch.bool),
        vision_places_P=torch.zeros(0, dtype=torch.int64),
        lengths_B=torch.full((3,), 96),
        images=(),
        tokens_of_image=(),
        image_samples_I=torch.zeros(0, dtype=torch.int64),
    )
    return stem, batch


@pytest.mark.parametrize("depth", [1, 2, 4])
@pytest.mark.parametrize("changes", SHAPES)
def test_operations_are_those_that_torch_counts(tiny: ReadConfig, changes: dict[str, Any], depth: int) -> None:
    """Of the products with weights, for queries of all rows; those of pairs follow from the shapes."""
    config = tiny(**changes)
    stem, batch = stem_and_batch(config, depth, torch.float32)
    every = torch.arange(96).expand(3, 96)
    with FlopCounterMode(display=False) as counter:
        layers = stem.attention_layers(batch, stem.table.rows(batch.input_ids_BL), None, [depth - 1])
        layers[depth - 1].row_inputs(every)
    counted = sum(
        flops for op, flops in counter.get_flop_counts()["Global"].items() if str(op) in ("aten.mm", "aten.addmm")
    )
    shapes = ModelShapes.of(model_size("tiny", config))
    pairs = 2 * 96**2 * shapes.query_width * (depth - 1)
    assert stem_flops(shapes, depth=depth, tokens=96, images=0) - pairs == pytest.approx(counted / 3, rel=0.005)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("depth", [2, 4])
@pytest.mark.parametrize("changes", SHAPES)
def test_memory_is_what_torch_allocates(tiny: ReadConfig, changes: dict[str, Any], depth: int, dtype: str) -> None:
    config = tiny(**changes)
    stem, batch = stem_and_batch(config, depth, getattr(torch, dtype))
    text = stem.table.rows(batch.input_ids_BL)
    with LiveBytes() as live:
        layers = stem.attention_layers(batch, text, None, range(depth))
    assert len(layers) == depth
    planned = stem_pass_bytes(ModelShapes.of(model_size("tiny", config)), dtype=dtype, depth=depth, tokens=3 * 96)
    assert live.peak <= planned * 1.02 and planned <= 1.2 * live.peak


def real_plan(options: PlanOptions, losses: dict[str, Any] | None = None, **store: Any) -> Plan:
    """7B to 1.7B on assumed data."""
    config = RunConfig.model_validate(
        {
            "data": {"conversations": "data.json"},
            "teacher": {"checkpoint": "mtgv/MobileVLM_V2-7B", "dtype": "bfloat16"},
            "student": {"checkpoint": "mtgv/MobileVLM_V2-1.7B", "dtype": "bfloat16"},
            "store": {"path": "store", "logits": {"kind": "topk"}, **store},
            "train": {
                "output": "out",
                "global_batch": 128,
                "micro_batch": 8,
                "epochs": 1,
                "gradient_checkpointing": True,
                "losses": losses or {},
            },
        }
    )
    return make_plan(config, options)


def options(disk: int) -> PlanOptions:
    return PlanOptions(samples=3_600_000, mean_tokens=300, disk=disk)


def test_storing_is_recommended_where_whole_layers_cost_more() -> None:
    """One whole layer is under 5 % of a step with gradient checkpointing, three are above."""
    stem: dict[str, Any] = {"profile": "stem"}
    plans = {
        depth: real_plan(options(100 * TERABYTE), **stem, attention={"layers": list(range(depth))})
        for depth in (1, 2, 4)
    }
    first = plans[1].stem
    assert not first.has_whole_layers and "whole in every step" not in "\n".join(plan_lines(plans[1]))
    layer = 2 * (4 * 4096**2 + 3 * 4096 * 11008 + 2 * 4096)
    for depth in (2, 4):
        stem_part = plans[depth].stem
        assert first.sizes is not None and stem_part.sizes is not None
        assert stem_part.sizes.device == first.sizes.device + (depth - 1) * layer
        assert stem_part.to_json()["attention_layers"] == list(range(depth))
        # seconds and hours are those of the added operations
        plain = plans[1].hours["a100-80gb"]["train"] / (1 + first.operations)
        assert plans[depth].hours["a100-80gb"]["train"] / plain == pytest.approx(1 + stem_part.operations, rel=1e-6)
        assert stem_part.step_seconds / first.step_seconds == pytest.approx(stem_part.operations / first.operations)
        # the bytes of the stored attention are those of the codec in the plan
        assert stem_part.attention_bytes == plans[depth].choices["attention"]["float16"]
        assert stem_part.attention_bytes == pytest.approx(depth * first.attention_bytes, rel=1e-3)
    assert 0.04 < plans[2].stem.operations < 0.05 and 0.11 < plans[4].stem.operations < 0.14
    assert not plans[2].stem.storing_is_cheaper and plans[4].stem.storing_is_cheaper
    page = "\n".join(plan_lines(plans[4]))
    assert "  depth 4: whole in every step, layers 0 to 2 (" in page
    assert "in the store instead, attention of layers 0 to 3, 14.5 TiB (float16; 1.13 s to read per step" in page
    assert "  recommended: store.attention.codec: float16, because the stem adds more than 5% of a step" in page
    of_sample = plans[4].stem.attention_bytes / 3_600_000
    assert plans[4].stem.read_seconds == pytest.approx(128 * of_sample / 500e6, rel=0.01)
    # a faster device computes them in less time than they can be read
    faster = replace(options(100 * TERABYTE), device="h100")
    assert not real_plan(faster, **stem, attention={"layers": [0, 1, 2, 3]}).stem.storing_is_cheaper
    # there is no room for them
    assert not real_plan(options(TERABYTE), **stem, attention={"layers": [0, 1, 2, 3]}).stem.storing_is_cheaper


def test_a_deeper_stem_for_later_is_in_the_store_but_not_in_training() -> None:
    plain, later = (real_plan(options(TERABYTE), profile="stem", **more) for more in ({}, {"stem": {"depth": 3}}))
    layer = 2 * (4 * 4096**2 + 3 * 4096 * 11008 + 2 * 4096)
    more = later.store.by_target["attachments"] - plain.store.by_target["attachments"]
    assert more == pytest.approx(2 * layer, abs=4096)
    assert later.profiles["stem"] - plain.profiles["stem"] == pytest.approx(2 * layer, abs=4096)
    assert later.profiles["compact"] - plain.profiles["compact"] == pytest.approx(
        later.store.by_target["attachments"], rel=0.01
    )
    assert later.stem.depth == plain.stem.depth == 1 and later.stem.sizes == plain.stem.sizes
    assert later.student is not None and plain.student is not None
    assert later.student.peak == plain.student.peak and later.hours == plain.hours


def test_layers_that_only_the_losses_name_make_the_stem_of_training_deeper() -> None:
    compared = {"attention_layers": {0: 0, 1: [1, 2]}}
    by_losses = real_plan(options(TERABYTE), compared, profile="stem", stem={"depth": 3})
    by_store = real_plan(options(TERABYTE), compared, profile="stem", attention={"layers": [0, 1, 2]})
    assert by_losses.stem.depth == 3 and by_losses.stem.layers == (0, 1, 2)
    assert by_losses.student is not None and by_store.student is not None
    assert by_losses.student.peak == by_store.student.peak and by_losses.hours == by_store.hours
    without = real_plan(options(TERABYTE), compared | {"attention": 0.0}, profile="stem", stem={"depth": 3})
    assert without.stem.depth == 1
