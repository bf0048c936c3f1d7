"""Liger's kernels, run by Triton's interpreter, against torch's; `test_liger.py` runs this file in its own process.

The interpreter runs one row of a kernel after the other in Python, so models and batches are as small as they can be.
It cannot compute in bfloat16.
"""

import inspect
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import toy_liger
from chosen_families import chosen
from kept_bytes import saved_bytes
from liger_kernel.transformers import functional as liger
from torch import Tensor, nn
from transformers import AutoModel, LlamaModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.qwen2_5_vl import Qwen2_5_VLTextConfig, Qwen2_5_VLTextModel
from transformers.models.qwen2_vl import Qwen2VLTextConfig, Qwen2VLTextModel
from transformers.models.qwen3_vl import Qwen3VLTextConfig, Qwen3VLTextModel

from alignkd.pipeline.plan.memory.student import layer_bytes
from alignkd.student_train.losses.attention.fused import fused_attention_loss
from alignkd.vlm.families.mobilevlm.model.config import parse_config
from alignkd.vlm.families.mobilevlm.model.mobilevlm import MobileVLM
from alignkd.vlm.families.mobilevlm.model.sizes import model_size, official_config
from alignkd.vlm.kernels.choice import use_kernels
from alignkd.vlm.kernels.liger import DECODERS

NewStudent = Callable[[], MobileVLM]
ALWAYS = ("llama", "gemma3_text", "qwen2_5_vl_text", "qwen3_vl_text")
CPU = torch.device("cpu")
SIZES: dict[str, Any] = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "vocab_size": 20, "max_position_embeddings": 64, "pad_token_id": 0,
    "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
OF_QWEN_VL = {
    "qwen2_vl_text": (Qwen2VLTextConfig, Qwen2VLTextModel),
    "qwen2_5_vl_text": (Qwen2_5_VLTextConfig, Qwen2_5_VLTextModel),
    "qwen3_vl_text": (Qwen3VLTextConfig, Qwen3VLTextModel),
}


def randn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def new_decoder(kind: str, dtype: torch.dtype = torch.float32) -> Any:
    """A decoder of this model_type, with weights that depend on nothing else."""
    torch.manual_seed(0)
    if kind in OF_QWEN_VL:
        make_config, make = OF_QWEN_VL[kind]
        rope = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]}
        decoder: Any = make(make_config(**SIZES, rope_parameters=rope))
    else:
        decoder = AutoModel.from_config(CONFIG_MAPPING[kind](**SIZES))
    for parameter in decoder.parameters():
        if parameter.ndim == 1:
            parameter.data += 0.2 * torch.randn_like(parameter)
    return decoder.to(dtype).eval()


def outcome(decoder: nn.Module, embeddings: Tensor) -> dict[str, Tensor]:
    """Last hidden states and all gradients of a scalar of them."""
    embeddings = embeddings.clone().requires_grad_()
    states = decoder(inputs_embeds=embeddings, use_cache=False).last_hidden_state
    states.float().square().mean().backward()
    found = {"states": states.detach(), "embeddings": embeddings.grad}
    found |= {name: value.grad for name, value in decoder.named_parameters() if value.grad is not None}
    return {name: value for name, value in found.items() if value is not None}


def check_same(found: dict[str, Tensor], expected: dict[str, Tensor], limit: float) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        difference = (found[name].double() - value.double()).norm() / value.double().norm()
        assert difference <= limit, f"{name} differs by {difference:.1e}"


@pytest.fixture
def limit() -> float:
    """Float32 gives about 3e-7; gradients of biases of keys are small differences of large numbers."""
    return 1e-5


@pytest.mark.parametrize("kind", chosen(DECODERS, ALWAYS.__contains__))
def test_a_decoder_has_the_same_states_and_gradients(kind: str, limit: float) -> None:
    decoder, embeddings = new_decoder(kind), randn(2, 5, 32)
    expected = outcome(decoder, embeddings)
    decoder.zero_grad()
    line = use_kernels("liger", decoder, decoder.layers, CPU)
    check_same(outcome(decoder, embeddings), expected, limit)
    assert f"1 decoder layers of {kind}" in line


def test_float16() -> None:
    decoder, embeddings = new_decoder("llama", torch.float16), randn(1, 5, 32, dtype=torch.float16)
    expected = outcome(decoder, embeddings)
    decoder.zero_grad()
    use_kernels("liger", decoder, decoder.layers, CPU)
    check_same(outcome(decoder, embeddings), expected, 5e-3)


def test_other_models_of_the_process_keep_torchs_kernels() -> None:
    patched, other = new_decoder("llama"), new_decoder("llama")
    embeddings, names = randn(1, 4, 32), {**vars(sys.modules[type(patched).__module__])}
    expected = outcome(other, embeddings)
    use_kernels("liger", patched, patched.layers, CPU)
    other.zero_grad()
    for one in (other, new_decoder("llama")):  # made before and after
        found = outcome(one, embeddings)
        assert all(torch.equal(found[name], value) for name, value in expected.items())
    assert vars(sys.modules[type(patched).__module__]) == names


@pytest.mark.parametrize("checkpointed", [False, True])
def test_the_attention_loss_and_what_it_records(new_student: NewStudent, checkpointed: bool, limit: float) -> None:
    """Queries and keys of two layers of MobileVLM are recorded before Liger rotates them."""
    embeddings = 0.5 * randn(2, 7, 64)
    rows_BR, cols_BC = torch.tensor([[4, 5, 6], [3, 5, 6]]), torch.tensor([[1, 2], [0, 2]])

    def run(kernels: Any) -> dict[str, Tensor]:
        model = new_student().requires_grad_()
        if checkpointed:
            model.checkpoint_layers()
        model.use_kernels(kernels)
        with model.watched_layers([0, 2]) as layers:
            states = model.decoder_states(embeddings)
        total, found = states.square().mean(), {"states": states.detach()}
        for number, layer in layers.items():
            found[f"rows of {number}"] = layer.attention(rows_BR, cols_BC)
            loss, _ = fused_attention_loss(
                layer.row_inputs(rows_BR), cols_BC, lambda chosen, _: chosen.square().sum((1, 2, 3)), [], rows_at_once=2
            )
            found[f"loss of {number}"] = loss.detach()
            total = total + loss
        total.backward()
        return found | {name: value.grad for name, value in model.named_parameters() if value.grad is not None}

    found, expected = run("liger"), run("torch")
    assert expected["rows of 2"].any() and "model.layers.0.self_attn.q_proj.weight" in expected
    check_same(found, expected, limit)


def test_the_toy_does_what_liger_does(limit: float) -> None:
    """The same values and gradients, and the same tensors are overwritten."""
    cases: dict[str, tuple[Callable[[], list[Tensor]], tuple[Any, ...]]] = {
        "liger_rms_norm": (lambda: [randn(2, 3, 8), randn(8, seed=1)], (1e-6, 1.0, "gemma", False)),
        "liger_swiglu": (lambda: [randn(2, 3, 8), randn(2, 3, 8, seed=1)], ()),
        "liger_geglu": (lambda: [randn(2, 3, 8), randn(2, 3, 8, seed=1)], ()),
        "liger_rope": (
            lambda: [randn(2, 3, 4, 8).transpose(1, 2), randn(2, 3, 2, 8, seed=1).transpose(1, 2)],
            (angles := torch.cat([randn(1, 3, 4), randn(1, 3, 4)], dim=-1), 1 - angles),
        ),
    }
    for name, (make, more) in cases.items():
        seen: list[dict[str, Tensor]] = []
        for library in (liger, toy_liger):
            given = [value.requires_grad_() for value in make()]
            outputs = getattr(library, name)(*given, *more)
            outputs = outputs if isinstance(outputs, tuple) else (outputs,)
            values = {f"output {number}": value.detach().clone() for number, value in enumerate(outputs)}
            gradients = torch.autograd.grad(sum(value.square().sum() for value in outputs), given)
            values |= {f"gradient {number}": value for number, value in enumerate(gradients)}
            seen.append(values | {f"input {number}": value.detach() for number, value in enumerate(given)})
        check_same(seen[0], seen[1], limit)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_a_layer_keeps_what_the_plan_says(dtype: str) -> None:
    tokens, counted = 6, {}
    for layers in (1, 2):
        raw = {**official_config("MobileVLM_V2-1.7B"), "vocab_size": 64, "num_hidden_layers": layers}
        raw |= {"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4, "num_key_value_heads": 2}
        config = parse_config(raw, path=Path("config.json"))
        decoder = LlamaModel(config.llama).to(getattr(torch, dtype))
        use_kernels("liger", decoder, decoder.layers, CPU)
        counted[layers] = saved_bytes(decoder, randn(1, tokens, 64).to(decoder.dtype).requires_grad_())
    per_token = (counted[2] - counted[1]) / tokens
    assert layer_bytes(model_size("tiny", config), dtype, "liger") == pytest.approx(per_token, rel=0.01)


def test_signatures() -> None:
    """The positional arguments that `vlm/kernels/liger.py` gives."""
    expected = {
        "liger_rms_norm": ["X", "W", "eps", "offset", "casting_mode", "in_place"],
        "liger_rope": ["q", "k", "cos", "sin"],
        "liger_swiglu": ["a", "b"],
        "liger_geglu": ["a", "b"],
    }
    for name, names in expected.items():
        assert list(inspect.signature(getattr(liger, name)).parameters)[: len(names)] == names
