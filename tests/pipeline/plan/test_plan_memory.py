"""Formulas of memory against what torch itself keeps and counts."""

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from kept_bytes import saved_bytes
from kernels_on_cpu import use_toys
from torch import Tensor
from transformers import LlamaModel

from alignkd.pipeline.config.checkpoint_config import checkpoint_config
from alignkd.pipeline.plan.advice import student_choices
from alignkd.pipeline.plan.memory import host as plan_host
from alignkd.pipeline.plan.memory.host import host_bytes, offloaded_bytes
from alignkd.pipeline.plan.memory.loads import ELEMENT, StudentLoad, TeacherLoad
from alignkd.pipeline.plan.memory.result import BESIDE_TORCH, Memory
from alignkd.pipeline.plan.memory.shapes import ModelShapes
from alignkd.pipeline.plan.memory.student import layer_bytes, student_memory
from alignkd.pipeline.plan.memory.teacher import teacher_memory
from alignkd.pipeline.plan.memory.trained import trained_parameters
from alignkd.pipeline.plan.time.devices import DEVICES, device_named
from alignkd.pipeline.plan.time.operations import forward_flops, training_flops
from alignkd.student_train.config import TrainConfig
from alignkd.student_train.distributed.ranks import start_ranks
from alignkd.student_train.engine.optimizers.moments import MOMENTS
from alignkd.student_train.engine.pinned_memory import may_pin, pinned_bytes
from alignkd.student_train.engine.zero import engine as zero_engine
from alignkd.student_train.objective.adapters import Adapters
from alignkd.student_train.objective.objective import DistilledStudent
from alignkd.student_train.objective.settings import LossConfig
from alignkd.vlm.errors import InputError
from alignkd.vlm.families.mobilevlm.model.config import VLMConfig, parse_config
from alignkd.vlm.families.mobilevlm.model.mobilevlm import MobileVLM
from alignkd.vlm.families.mobilevlm.model.sizes import MEMBERS, model_size, official_config
from alignkd.vlm.families.mobilevlm.weights.checkpoint import load_model
from alignkd.vlm.kernels.choice import Kernels, use_kernels

GIB = 1 << 30
MIB = 1 << 20
TEACHER, STUDENT = "mtgv/MobileVLM_V2-7B", "mtgv/MobileVLM_V2-1.7B"


def shapes(name: str) -> ModelShapes:
    return ModelShapes.of(model_size(name, checkpoint_config(name, None)))


def config(**changes: Any) -> VLMConfig:
    raw = {**official_config("MobileVLM_V2-1.7B"), "vocab_size": 64, "num_hidden_layers": 2, **changes}
    return parse_config(raw, path=Path("config.json"))


def load(**changes: Any) -> StudentLoad:
    base: dict[str, Any] = {
        "dtype": "bfloat16", "micro_batch": 8, "length": 512, "supervised": 300, "queries": 300, "teacher_heads": 32,
        "teacher_hidden": 4096, "hidden_logits": False, "head_chunk_mib": 64, "attention_chunk_bytes": 64 << 20,
    }  # fmt: skip
    return StudentLoad(**{**base, **changes})


@pytest.mark.parametrize("kernels", ["torch", "liger"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize(
    ("hidden", "inner", "heads", "kv_heads"), [(256, 512, 4, 4), (320, 1024, 8, 2), (512, 640, 4, 4)]
)
def test_a_layer_keeps_what_torch_keeps(
    kernels: Kernels, dtype: str, hidden: int, inner: int, heads: int, kv_heads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_toys(monkeypatch)
    tokens, counted = 192, {}
    for layers in (1, 3):
        made = config(
            hidden_size=hidden, intermediate_size=inner, num_attention_heads=heads, num_key_value_heads=kv_heads,
            num_hidden_layers=layers,
        )  # fmt: skip
        decoder = LlamaModel(made.llama).to(getattr(torch, dtype))
        use_kernels(kernels, decoder, decoder.layers, torch.device("cpu"))
        embeddings = torch.randn(1, tokens, hidden).to(getattr(torch, dtype)).requires_grad_()
        counted[layers] = saved_bytes(decoder, embeddings)
    per_token = (counted[3] - counted[1]) / 2 / tokens
    assert layer_bytes(model_size("tiny", made), dtype, kernels) == pytest.approx(per_token, rel=0.01)


def test_trained_parameters_are_those_of_the_student_that_is_trained() -> None:
    made = config(hidden_size=64, intermediate_size=96, num_attention_heads=4, num_key_value_heads=2)
    with torch.device("meta"):
        adapters = Adapters(heads=(32, 4), hidden_sizes=(4096, 64))
        student = DistilledStudent(MobileVLM(made), adapters, LossConfig(), None)
    trained = sum(parameter.numel() for parameter in student.parameters() if parameter.requires_grad)
    assert trained_parameters(ModelShapes.of(model_size("tiny", made)), load()) == trained


@pytest.mark.parametrize("name", MEMBERS)
def test_weights_are_those_of_the_models_command(name: str) -> None:
    model = shapes(name)
    made = TeacherLoad(dtype="bfloat16", quantization="none", tokens=1, longest=1, images=1, supervised=1, queries=1,
                       stored=1, logit_bytes=30)  # fmt: skip
    assert teacher_memory(model, made).parts["weights"] == model.size.weight_bytes["bfloat16"]
    student = student_memory(model, load(micro_batch=1, length=1))
    adapters = (
        trained_parameters(model, load()) + model.size.parameters["vision_tower"] - model.size.parameters["total"]
    )
    assert student.parts["weights"] == 2 * (model.size.parameters["total"] + adapters)


def test_the_family_on_a_24_gib_card() -> None:
    """What the recipes ask of one card, and that moments in float32 need more."""
    student, card = shapes(STUDENT), 24 * GIB
    for size in ({"micro_batch": 4}, {"micro_batch": 1, "length": 2048, "supervised": 1800, "queries": 1800}):
        in_8_bits = student_memory(student, load(optimizer="adamw_8bit", accumulates=True, **size))
        assert in_8_bits.peak + BESIDE_TORCH < 20.1 * GIB and in_8_bits.host < 6 * GIB
        assert not student_memory(student, load(accumulates=True, **size)).fits(card)
    both: dict[str, Any] = {"optimizer": "adamw_offload", "gradient_checkpointing": True}
    short = student_memory(student, load(micro_batch=16, **both))
    long = student_memory(student, load(micro_batch=4, length=2048, supervised=1800, queries=1800, **both))
    assert short.peak + BESIDE_TORCH < 12 * GIB and long.peak + BESIDE_TORCH < 20 * GIB
    assert 25 * GIB < short.host < 28 * GIB
    teacher = TeacherLoad(dtype="bfloat16", quantization="none", tokens=8192, longest=2048, images=64, supervised=4000,
                          queries=4000, stored=30_000_000, logit_bytes=30)  # fmt: skip
    assert 13.2 * GIB < teacher_memory(shapes(TEACHER), teacher).peak < 20 * GIB


@given(
    micro_batch=st.integers(1, 32), length=st.integers(1, 4096), devices=st.integers(1, 64),
    head=st.sampled_from([1, 64, 512]), queries=st.integers(0, 1000), hidden=st.booleans(),
)  # fmt: skip
def test_memory_goes_the_right_way(
    micro_batch: int, length: int, devices: int, head: int, queries: int, hidden: bool
) -> None:
    model = SHAPES
    given_load = load(micro_batch=micro_batch, length=length, devices=devices, head_chunk_mib=head, queries=queries,
                      hidden_logits=hidden)  # fmt: skip
    plain = student_memory(model, given_load)
    assert plain.peak >= max(plain.parts.values()) and min(plain.parts.values()) >= 0
    if devices > 1:  # one device has no buckets
        assert student_memory(model, load(**{**vars(given_load), "devices": devices + 1})).peak <= plain.peak
    assert student_memory(model, load(**{**vars(given_load), "micro_batch": micro_batch + 1})).peak >= plain.peak
    assert student_memory(model, load(**{**vars(given_load), "accumulates": True})).peak >= plain.peak
    in_8_bits = student_memory(model, load(**{**vars(given_load), "optimizer": "adamw_8bit"}))
    assert in_8_bits.peak < plain.peak and in_8_bits.host == plain.host
    offloaded = student_memory(model, load(**{**vars(given_load), "optimizer": "adamw_offload"}))
    assert offloaded.host >= plain.host > 0 and (offloaded.peak < plain.peak or devices > 4)
    assert sum(offloaded.host_parts.values()) >= offloaded.host > max(offloaded.host_parts.values())
    wide = student_memory(model, load(**{**vars(given_load), "dtype": "float32"}))
    assert wide.parts["weights"] >= 2 * plain.parts["weights"] - 2 * GIB and wide.peak > plain.peak


SHAPES = shapes(STUDENT)


def test_checkpointing_keeps_a_layers_input_instead_of_its_inside() -> None:
    tokens, size = 8 * 512, SHAPES.size
    plain, again = (student_memory(SHAPES, load(gradient_checkpointing=on)).parts for on in (False, True))
    assert plain["activations"] - again["activations"] == size.num_layers * tokens * (
        layer_bytes(size, "bfloat16") - ELEMENT["bfloat16"] * size.hidden_size
    )


def test_choices_go_from_cheap_to_dear_and_end() -> None:
    """Of 6, 3 and 1 samples of 512 tokens, one is too small to keep a device busy."""
    choices = list(student_choices(load(micro_batch=6)))
    found = [(choice.optimizer, choice.gradient_checkpointing, choice.micro_batch) for choice in choices]
    assert found[:4] == [("adamw", False, 6), ("adamw", False, 3), ("adamw_8bit", False, 6), ("adamw_8bit", False, 3)]
    assert found.index(("adamw", False, 1)) > found.index(("adamw_8bit", True, 3))
    assert found.index(("adamw_offload", False, 6)) > found.index(("adamw_8bit", True, 1))
    assert found[-1] == ("adamw_offload", True, 1)
    assert choices[0].float32_gradients and not choices[-1].float32_gradients
    assert len(choices) == len({str(choice) for choice in choices}) == 7 * 3
    assert all(choice.accumulates for choice in choices if choice.micro_batch < 6)


def test_operations_are_those_of_the_shapes() -> None:
    """6 N of the usual estimate, for a model without an image."""
    size = SHAPES.size
    layers = size.parameters["language_model"] - 2 * size.vocab_size * size.hidden_size
    once = forward_flops(SHAPES, tokens=100, images=0, supervised=0)
    assert once == pytest.approx(2 * layers * 100, rel=0.01)
    step = training_flops(SHAPES, tokens=100, images=0, supervised=0, gradient_checkpointing=False)
    assert step == pytest.approx(3 * once)
    tower = forward_flops(SHAPES, tokens=0, images=1, supervised=0)
    counted = SHAPES.size.parameters["vision_tower"] * 23 / 24 * 2 * 577
    assert tower == pytest.approx(counted, rel=0.25)  # attention, projector, embeddings are no part of the estimate


def test_devices_by_name() -> None:
    assert device_named("RTX3090").memory == 24 * GIB and all(device.teraflops > 10 for device in DEVICES.values())
    with pytest.raises(InputError, match="device is 'gpu', expected one of t4, v100"):
        device_named("gpu")
    assert Memory(parts={}, peak=23 * GIB).fits(24 * GIB) and not Memory(parts={}, peak=24 * GIB).fits(24 * GIB)


def test_offloaded_parts_are_the_buffers_of_a_real_engine(
    golden: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Every buffer that DeepSpeed pins, by size, and the moments, which it does not know of."""
    accelerator = zero_engine.deepspeed.accelerator.get_accelerator()
    pinned: list[int] = []

    def note(tensor: Tensor, **_: Any) -> Tensor:
        pinned.append(tensor.nbytes)
        return tensor

    monkeypatch.setattr(accelerator, "pin_memory", note)
    monkeypatch.setattr(zero_engine, "may_pin", lambda device: True)
    settings = TrainConfig(output=tmp_path, steps=1, micro_batch=1, global_batch=2, optimizer="adamw_offload")
    for in_float32 in (True, False):
        pinned.clear()
        model = load_model(golden / "student", vision_config=golden / "clip", dtype=torch.bfloat16)
        adapters = Adapters(heads=(8, model.config.num_heads), hidden_sizes=(128, model.config.hidden_size))
        student = DistilledStudent(model, adapters, LossConfig(), None)
        train = settings.model_copy(update={"float32_gradients": in_float32})
        optimizer = zero_engine.ZeroEngine(student, train, dtype=torch.bfloat16, ranks=start_ranks())._optimizer
        if not in_float32:  # made for each parameter when its first gradient arrives
            for parameter in optimizer.param_dict.values():
                parameter.grad = torch.zeros_like(parameter)
                optimizer.async_accumulate_grad_in_cpu_via_gpu(parameter)
        shapes = ModelShapes.of(model_size("golden", model.config))
        planned = load(
            optimizer="adamw_offload",
            accumulates=True,
            float32_gradients=in_float32,
            teacher_heads=8,
            teacher_hidden=128,
        )
        with monkeypatch.context() as exact:
            exact.setattr(plan_host, "pinned_bytes", int)
            parts = offloaded_bytes(shapes, planned)
        moments = [state[kind].nbytes for state in optimizer.optimizer.state.values() for kind in MOMENTS]
        assert parts.pop("moments of AdamW") == pytest.approx(sum(moments), abs=64)  # groups are of even length
        assert sum(parts.values()) == pytest.approx(sum(pinned), abs=128)
        assert ("sums of gradients" in parts) is not in_float32
        taken = offloaded_bytes(shapes, planned)
        if in_float32:
            assert sum(taken.values()) - taken["moments of AdamW"] == sum(map(pinned_bytes, pinned))


@given(st.integers(0, 1 << 34))
def test_pinned_memory_is_rounded_up_only_where_it_is_small(num_bytes: int) -> None:
    taken = pinned_bytes(num_bytes)
    assert num_bytes <= taken <= max(2 * num_bytes, 1) and taken - num_bytes < MIB
    assert pinned_bytes(taken) == taken


def test_rounding_is_bounded_once_and_a_users_own_threshold_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    """A torch before 2.13 refuses the setting; then nothing is pinned, and the user is told."""
    held = ["expandable_segments:True"]
    monkeypatch.setattr(torch._C, "_accelerator_getAllocatorSettings", lambda: held[-1])
    monkeypatch.setattr(torch._C, "_accelerator_setAllocatorSettings", held.append)
    cuda = torch.device("cuda", 0)
    assert may_pin(cuda) and may_pin(cuda) and not may_pin(torch.device("cpu"))
    assert held == ["expandable_segments:True", "expandable_segments:True,pinned_max_round_threshold_mb:1"]
    held[:] = ["pinned_max_round_threshold_mb:512"]
    assert may_pin(cuda) and len(held) == 1

    def refuse(settings: str) -> None:
        raise ValueError(f"Unrecognized key '{settings}' in CUDA allocator config.")

    held[:] = [""]
    monkeypatch.setattr(torch._C, "_accelerator_setAllocatorSettings", refuse)
    assert not may_pin(cuda)
    monkeypatch.delattr(torch._C, "_accelerator_setAllocatorSettings")
    assert not may_pin(cuda)


def test_small_data_sets_are_planned_in_memory() -> None:
    """Without data workers, and up to the limit over all processes; see `KeptSamples`."""

    def kept(**changes: Any) -> int:
        parts, peak = host_bytes(shapes(STUDENT), load(batch_bytes=8 * MIB, **changes))
        assert peak >= sum(parts[name] for name in ("processes", "batches", "samples kept in memory"))
        return parts["samples kept in memory"] // MIB

    assert kept(num_samples=1024) == 1024
    assert kept(num_samples=1025) == kept(num_samples=1024, data_workers=1) == kept() == 0
    assert kept(num_samples=512, devices=2) == 2 * 512
    assert kept(num_samples=513, devices=2) == 0


def test_terms_on_vision_tokens_take_memory() -> None:
    """A second pass over the head has gradients of its own; relations keep states and cosines of all pairs."""
    model = shapes(STUDENT)
    plain, more = (
        student_memory(model, load(micro_batch=4, hidden_logits=with_head, **further))
        for with_head, further in (
            (False, {}),
            (True, {"head_positions": 144, "relations": True, "state_adapter": True}),
        )
    )
    assert "relations of vision tokens" not in plain.parts and more.parts["relations of vision tokens"] > 1 << 20
    size = model.size
    gradients = 4 * size.hidden_size * (size.vocab_size + 4 * 144)
    assert more.parts["head and logits"] - plain.parts["head and logits"] >= gradients
    assert more.peak > plain.peak + gradients
