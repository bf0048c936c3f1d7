"""Kernels beside torch's: what is refused, what changes, and what stays as it is."""

import sys
from pathlib import Path
from typing import Any

import pytest
import tiny_families
import torch
from kernels_on_cpu import use_toys
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaModel

from alignkd.vlm.errors import InputError
from alignkd.vlm.families.huggingface.model.probe import probe_examples
from alignkd.vlm.families.open import open_checkpoint
from alignkd.vlm.inputs.batch import collate_sequences
from alignkd.vlm.kernels import compiled, liger
from alignkd.vlm.kernels.choice import Kernels, check_kernels, use_kernels

CPU = torch.device("cpu")
SIZES: dict[str, Any] = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 20, "max_position_embeddings": 64, "initializer_range": 0.5,
}  # fmt: skip


@pytest.fixture
def toys(monkeypatch: pytest.MonkeyPatch) -> None:
    use_toys(monkeypatch)


def new_decoder(**more: Any) -> LlamaModel:
    torch.manual_seed(0)
    return LlamaModel(LlamaConfig(**SIZES, **more)).eval()


def bound(decoder: nn.Module) -> list[str]:
    """Modules with a forward function of their own."""
    return [name for name, module in decoder.named_modules() if "forward" in vars(module)]


def test_liger_needs_a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(InputError, match=r"^kernels 'liger' need a CUDA device, found cpu; set kernels to 'torch' or"):
        check_kernels("liger", CPU)


def test_liger_needs_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setitem(sys.modules, "liger_kernel", None)
    with pytest.raises(InputError, match=r"^kernels 'liger' need liger-kernel .*pip install 'alignkd\[kernels\]'"):
        check_kernels("liger", CPU)


@pytest.mark.usefixtures("toys")
def test_decoders_without_kernels_of_liger() -> None:
    decoder = new_decoder(hidden_act="relu")
    with pytest.raises(InputError, match=r"has 2 RMSNorm.*the activation ReLU, expected .*SiLU"):
        use_kernels("liger", decoder, decoder.layers, CPU)
    decoder = new_decoder()
    decoder.config.model_type = "other"
    with pytest.raises(InputError, match=r"not available for a decoder of model_type 'other', only for .*llama.*comp"):
        use_kernels("liger", decoder, decoder.layers, CPU)
    with pytest.raises(InputError, match=r"not available for a decoder of model_type None"):
        use_kernels("liger", None, decoder.layers, CPU)
    assert not bound(decoder)


@pytest.mark.parametrize(
    ("name", "part"),
    [("liger_rms_norm", "LlamaRMSNorm"), ("liger_rope", "LlamaAttention"), ("liger_swiglu", "LlamaMLP")],
)
@pytest.mark.usefixtures("toys")
def test_a_kernel_that_computes_something_else(name: str, part: str, monkeypatch: pytest.MonkeyPatch) -> None:
    own = getattr(liger._functions(), name)

    def other(first: Tensor, *more: Any) -> Any:
        return own(1.01 * first, *more) if name != "liger_rms_norm" else own(first, 1.01 * more[0], *more[1:])

    monkeypatch.setattr(liger._functions(), name, other)
    decoder = new_decoder()
    with pytest.raises(
        InputError,
        match=rf"^kernels 'liger': {part} of model_type 'llama' differs from torch's by [0-9.]+e-0[23], limit 1e-03",
    ):
        use_kernels("liger", decoder, decoder.layers, CPU)
    assert not bound(decoder)


@pytest.mark.usefixtures("toys")
def test_only_the_layers_of_one_model_change() -> None:
    decoder, other = new_decoder(), new_decoder()
    names, before = {**vars(sys.modules[LlamaModel.__module__])}, [*decoder.state_dict()]
    decoder.layers[0].train()
    use_kernels("liger", decoder, decoder.layers, CPU)
    modules = ("self_attn", "mlp", "input_layernorm", "post_attention_layernorm")
    assert sorted(bound(decoder)) == sorted(f"layers.{number}.{name}" for number in (0, 1) for name in modules)
    assert not bound(other) and not bound(new_decoder())
    assert vars(sys.modules[LlamaModel.__module__]) == names and [*decoder.state_dict()] == before
    assert decoder.layers[0].training and not decoder.layers[1].training


def test_no_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled, "BACKEND", "nobody has this")
    compiled._check_compiler.cache_clear()
    with pytest.raises(
        InputError, match=r"^kernels 'compile': torch cannot compile for cpu here .*install a C\+\+ comp"
    ):
        check_kernels("compile", CPU)
    compiled._check_compiler.cache_clear()


def test_layers_without_gradient_in_machine_code() -> None:
    """The compiler as it is used, for another length too."""
    decoder = new_decoder()
    batches = [torch.randn(2, length, 32) for length in (7, 9)]
    with torch.no_grad():
        expected = [decoder(inputs_embeds=batch, use_cache=False).last_hidden_state for batch in batches]
        assert "2 decoder layers" in use_kernels("compile", decoder, decoder.layers, CPU)
        for batch, states in zip(batches, expected, strict=True):
            torch.testing.assert_close(decoder(inputs_embeds=batch, use_cache=False).last_hidden_state, states)
    torch.compiler.reset()


@pytest.mark.parametrize("kernels", ["liger", "compile"])
@pytest.mark.usefixtures("toys")
def test_what_is_recorded_in_a_model_of_transformers(
    tmp_path: Path, kernels: Kernels, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Norms of queries and keys, positions in three dimensions; layer 1 is recorded. The weights are saved as ever."""
    monkeypatch.setattr(compiled, "BACKEND", "eager")  # graphs of the forward pass alone
    checkpoint = open_checkpoint(tiny_families.build("qwen3_vl", tmp_path / "tiny"))
    model = checkpoint.load_model()
    batch = collate_sequences(probe_examples(checkpoint.preparation()))
    with torch.no_grad():
        vision = model.encode_images(batch.images, batch.image_samples_I.tolist())

    def outcome() -> dict[str, Tensor]:
        with model.watched_layers([1]) as layers:
            states = model.hidden_states(batch, vision)
        rows_BR = torch.tensor([[3, 5]] * len(batch.lengths_B))
        inputs = layers[1].row_inputs(rows_BR)
        (states.square().mean() + inputs.query_BHRd.square().mean() + inputs.key_BHLd.square().mean()).backward()
        found = {name: value.grad for name, value in model.named_parameters() if value.grad is not None}
        model.zero_grad()
        return found | {"states": states, "queries": inputs.query_BHRd, "keys": inputs.key_BHLd}

    expected = outcome()
    model.use_kernels(kernels)
    found = outcome()
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert (found[name] - value).norm() <= 2e-5 * value.norm(), name
    checkpoint.save(model, tmp_path / "saved")
    assert (tmp_path / "saved/model.safetensors").read_bytes() == (tmp_path / "tiny/model.safetensors").read_bytes()
    torch.compiler.reset()
