"""The planned memory of a teacher pass against the tensors that were alive at once."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from teacher_batches import LiveBytes, load_of, stored_bytes

from alignkd.pipeline.config.checkpoint_config import checkpoint_config
from alignkd.pipeline.plan.memory.loads import LOGIT_BYTES, TeacherLoad
from alignkd.pipeline.plan.memory.result import Memory
from alignkd.pipeline.plan.memory.shapes import ModelShapes
from alignkd.pipeline.plan.memory.teacher import BATCHES_IN_FLIGHT, teacher_memory
from alignkd.teacher_dump.preparation import PreparationThreads, Prepared
from alignkd.teacher_dump.settings.store import StoreConfig
from alignkd.teacher_dump.targets.capture import Capture
from alignkd.vlm.data.sample import Sample
from alignkd.vlm.data.turns import Turn
from alignkd.vlm.families.mobilevlm.model.config import VLMConfig, load_config
from alignkd.vlm.families.mobilevlm.model.mobilevlm import MobileVLM
from alignkd.vlm.families.mobilevlm.model.sizes import model_size
from alignkd.vlm.families.mobilevlm.weights.checkpoint import load_preparation
from alignkd.vlm.families.mobilevlm.weights.loading import new_model

NUM = 8
STORES: tuple[dict[str, Any], ...] = (
    {"profile": "exact"},
    {"profile": "compact"},
    {"profile": "stem"},
    {"profile": "stem", "logits": {"kind": "none"}},
    {"logits": {"kind": "sampled"}},
    {"logits": {"kind": "full"}},
    {"logits": {"kind": "topk", "top_k": 4}, "attention_pairs": "vqv"},
    {"logits": {"kind": "none"}, "attention": {"layers": [0, 1], "pairs": "all"}},
    {"profile": "compact", "attention": {"layers": [1], "pairs": "vqv", "heads": "mean"}},
)


@pytest.fixture(scope="module")
def config(golden: Path, tmp_path_factory: pytest.TempPathFactory) -> VLMConfig:
    """The golden teacher's tower before a language model that is wide enough to count."""
    folder = tmp_path_factory.mktemp("wide")
    raw = json.loads((golden / "teacher" / "config.json").read_text())
    wide = {"hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": 2, "num_attention_heads": 8}
    (folder / "config.json").write_text(json.dumps({**raw, **wide, "num_key_value_heads": 8, "vocab_size": 4000}))
    return load_config(folder, vision_config=golden / "clip")


@pytest.fixture(scope="module")
def samples(golden: Path, golden_images: Path) -> list[Prepared]:
    builder = load_preparation(golden / "teacher", template="v1", vision_config=golden / "clip")
    image = next(entry["image"] for entry in json.loads((golden / "v1.json").read_text()) if "image" in entry)
    turns = (Turn("human", "<image>\nWhat is it?"), Turn("gpt", "a cup of coffee on the table, and " * 6))
    with PreparationThreads(builder, golden_images, 2) as threads:
        one = Sample(index=0, id="0", images=(image,), turns=turns, folder=golden_images)
        return threads.prepare([replace(one, index=i, id=str(i)) for i in range(NUM)])


@pytest.fixture(scope="module", params=["float32", "bfloat16"])
def model(request: pytest.FixtureRequest, config: VLMConfig) -> MobileVLM:
    """The teacher in a dtype; a pass changes nothing in it."""
    return new_model(config, seed=0).to(getattr(torch, request.param))


@pytest.mark.parametrize("store", STORES, ids=str)
def test_the_plan_is_never_below_what_is_alive(
    store: dict[str, Any], model: MobileVLM, config: VLMConfig, samples: list[Prepared]
) -> None:
    settings, dtype = StoreConfig(path="store", **store), str(model.lm_head.weight.dtype).removeprefix("torch.")
    capture = Capture(model, settings)
    with LiveBytes([*model.parameters(), *model.buffers()]) as live:
        captured = capture(samples)
    assert len(captured) == NUM
    stored = stored_bytes(captured)
    load = load_of(samples, settings, dtype, stored, num_layers=config.num_layers)
    planned = teacher_memory(ModelShapes.of(model_size("wide", config)), load)
    # nothing waits for a writer here, and targets of this batch exist only after the decoder has run
    one_batch = planned.peak - planned.parts["weights"] - BATCHES_IN_FLIGHT * stored
    assert one_batch + stored >= live.peak, (live.peak, planned)
    assert one_batch <= 3 * live.peak, (live.peak, planned)
    if planned.parts["decoder"] == max(moments(planned)):
        assert one_batch >= live.peak


def moments(planned: Memory) -> list[int]:
    return [planned.parts[name] for name in ("decoder", "vision tower", "attention rows", "logits")]


@pytest.mark.parametrize("kind", ["hidden", "nucleus"])
def test_the_7b_teacher_fits_a_24_gb_card(kind: str) -> None:
    """Batches of 8192 tokens, of samples up to 2048, in bfloat16."""
    shapes = ModelShapes.of(model_size("7B", checkpoint_config("mtgv/MobileVLM_V2-7B", None)))
    load = TeacherLoad(
        dtype="bfloat16",
        quantization="none",
        tokens=8192,
        longest=2048,
        images=64,
        supervised=6000,
        queries=6000,
        stored=8192 * 4096 * 2,
        logit_bytes=LOGIT_BYTES[kind],
    )
    assert 14.1e9 < teacher_memory(shapes, load).peak < 20 * 2**30
