"""What a plan counts as trained against real students: parameters, tensors and bytes of weights."""

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from trained_choices import CHOICES

from alignkd.pipeline.plan.memory.host import offloaded_bytes
from alignkd.pipeline.plan.memory.loads import StudentLoad
from alignkd.pipeline.plan.memory.shapes import ModelShapes
from alignkd.pipeline.plan.memory.student import student_memory
from alignkd.pipeline.plan.memory.trained import (
    decoder_tensors,
    group_sizes,
    largest_trained,
    trained_parameters,
    weight_gradient_share,
)
from alignkd.student_train.config import TrainConfig
from alignkd.student_train.distributed.ranks import start_ranks
from alignkd.student_train.engine.one_device.engine import OneDeviceEngine
from alignkd.student_train.engine.optimizers.blocks import Blocks
from alignkd.student_train.engine.parameter_groups import parameter_groups
from alignkd.student_train.objective.adapters import Adapters
from alignkd.student_train.objective.objective import DistilledStudent
from alignkd.student_train.objective.settings import LossConfig
from alignkd.student_train.trained.lora import add_lora
from alignkd.student_train.trained.settings import TrainedConfig
from alignkd.vlm.families.mobilevlm.model.config import parse_config
from alignkd.vlm.families.mobilevlm.model.mobilevlm import MobileVLM
from alignkd.vlm.families.mobilevlm.model.quantization import Quantizer
from alignkd.vlm.families.mobilevlm.model.sizes import model_size, official_config

SHAPES = {"vocab_size": 512, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 3}
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2}
CLIP = Path(__file__).parents[2] / "golden" / "mobilevlm_v2_tiny" / "clip"
TOWER = {"mm_hidden_size": json.loads((CLIP / "config.json").read_text())["hidden_size"]}
CONFIG = parse_config(
    {**official_config("MobileVLM_V2-1.7B"), **SHAPES, **HEADS, **TOWER}, path=Path("config.json"), vision_config=CLIP
)
MODEL = ModelShapes.of(model_size("tiny", CONFIG))


def student_of(trained: TrainedConfig, losses: LossConfig) -> DistilledStudent:
    with torch.device("meta"):
        model = MobileVLM(CONFIG)
        adapters = Adapters(heads=(32, 4), hidden_sizes=(4096, 64))
        if trained.lora_settings is not None:
            add_lora(model, trained.lora_settings, seed=0)
        return DistilledStudent(model, adapters, losses, trained=trained)


def load_of(trained: TrainedConfig, losses: LossConfig, **more: Any) -> StudentLoad:
    shapes: dict[str, Any] = {
        "dtype": "bfloat16", "micro_batch": 2, "length": 64, "supervised": 30, "queries": 30, "teacher_heads": 32,
        "teacher_hidden": 4096, "hidden_logits": False, "head_chunk_mib": 1, "attention_chunk_bytes": 1 << 20,
        "proj_adapter": "vision_all" in losses.weights, "attn_adapter": "attention" in losses.weights,
    }  # fmt: skip
    return StudentLoad(trained=trained, **shapes | more)


@pytest.mark.parametrize("choice", CHOICES)
def test_groups_and_tensors_are_those_of_the_optimiser(choice: str, tmp_path: Path) -> None:
    keys, weights = CHOICES[choice]
    trained, losses = TrainedConfig(**keys), LossConfig(**weights)
    student, load = student_of(trained, losses), load_of(trained, losses)
    groups = parameter_groups(student, TrainConfig(output=tmp_path, steps=1))
    assert [count for count in group_sizes(MODEL, load) if count] == [
        sum(value.numel() for value in group["params"]) for group in groups
    ]
    assert trained_parameters(MODEL, load) == sum(v.numel() for v in student.parameters() if v.requires_grad)
    decoder = sorted(
        value.numel()
        for name, value in student.model.named_parameters()
        if value.requires_grad and not name.startswith("model.mm_projector")
    )
    assert sorted(decoder_tensors(MODEL, load)) == decoder
    assert largest_trained(MODEL, load) >= max(decoder, default=1)
    assert weight_gradient_share(MODEL, trained) == pytest.approx(
        min(1.0, sum(decoder) / MODEL.size.parameters["language_model"])
    )


@pytest.mark.parametrize("choice", CHOICES)
def test_frozen_weights_take_memory_and_no_state(choice: str) -> None:
    keys, weights = CHOICES[choice]
    trained, losses = TrainedConfig(**keys), LossConfig(**weights)
    student, load = student_of(trained, losses), load_of(trained, losses)
    found = student_memory(MODEL, load)
    assert found.parts["weights"] == 2 * sum(value.numel() for value in student.parameters())
    assert found.parts["optimiser"] == 10 * trained_parameters(MODEL, load)
    several = student_memory(MODEL, load_of(trained, losses, devices=2))
    assert several.parts["optimiser"] == pytest.approx(12 * trained_parameters(MODEL, load) / 2, abs=8)
    offloaded = offloaded_bytes(MODEL, load_of(trained, losses, optimizer="adamw_offload"))
    assert offloaded["moments of AdamW"] == 8 * trained_parameters(MODEL, load)
    everything = student_memory(MODEL, load_of(TrainedConfig(), LossConfig()))
    assert choice == "all" or found.peak < everything.peak


@pytest.mark.parametrize("optimizer", ["adamw", "adamw_8bit"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_state_is_that_of_a_real_engine_for_one_device(optimizer: Any, dtype: str, tmp_path: Path) -> None:
    """Beside the weights themselves: moments, and what bfloat16 weights lack of their masters."""
    if optimizer == "adamw_8bit" and find_spec("bitsandbytes") is None:
        pytest.skip("bitsandbytes is not installed")
    torch.manual_seed(0)
    student = DistilledStudent(MobileVLM(CONFIG), Adapters(heads=(32, 4), hidden_sizes=(4096, 64)), LossConfig())
    config = TrainConfig(output=tmp_path, steps=1, optimizer=optimizer)
    engine = OneDeviceEngine(student, config, dtype=getattr(torch, dtype), ranks=start_ranks())
    held = [value for state in engine._optimizer.state.values() for value in state.values()]
    blocks = [part for value in held if isinstance(value, Blocks) for part in (value.codes, value.scales)]
    moments = [*blocks, *(value for value in held if isinstance(value, torch.Tensor) and value.dim())]
    expected = sum(value.nbytes for value in [*moments, *engine._masters._rests.values()])
    load = load_of(TrainedConfig(), LossConfig(), dtype=dtype, optimizer=optimizer)
    # a projector is taken for one tensor
    assert student_memory(MODEL, load).parts["optimiser"] == pytest.approx(expected, rel=0.02)


@pytest.mark.parametrize("kind", ["nf4", "int8"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_bytes_of_quantised_weights(kind: Any, dtype: str) -> None:
    pytest.importorskip("bitsandbytes")
    trained = TrainedConfig(lora={"rank": 4}, quantization=kind)  # type: ignore[arg-type]
    real = getattr(torch, dtype)
    model = MobileVLM(CONFIG).to(real)
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    quantizer = Quantizer(model, kind, dtype=real, device=torch.device("cpu"))
    for name, value in weights.items():
        quantizer.take(name, value)
    assert trained.lora_settings is not None
    add_lora(model, trained.lora_settings, seed=0)
    for name, value in model.named_parameters():
        if "lora_" in name:
            value.data = value.data.to(real)  # as the engine does
    adapters = 33 * 4 + 4097 * 64
    expected = sum(bytes_of(module) for module in model.modules()) + adapters * real.itemsize
    load = load_of(trained, LossConfig(), dtype=dtype)
    assert student_memory(MODEL, load).parts["weights"] == pytest.approx(expected, rel=1e-5)


def bytes_of(module: nn.Module) -> int:
    """Bytes of the parameters that a module itself holds, scales of quantised weights included."""
    found = sum(value.nbytes for value in module.parameters(recurse=False))
    weight = dict(module.named_parameters(recurse=False)).get("weight")  # LoRA shows that of the layer in it as its own
    state, scales = getattr(weight, "quant_state", None), getattr(weight, "SCB", None)
    return found + (0 if state is None else state.absmax.nbytes) + (0 if scales is None else scales.nbytes)
