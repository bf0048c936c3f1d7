"""Which linear layers get LoRA, from names alone and from modules."""

import re

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from alignkd.student_train.errors import TrainError
from alignkd.student_train.trained.lora import add_product
from alignkd.student_train.trained.settings import LoraSettings, TrainedConfig
from alignkd.student_train.trained.targets import lora_names
from alignkd.vlm.families.sizes import named_linear_layers, names_of_other_matrices, shapes_of_linear_layers

INNER = ("self_attn.q_proj", "self_attn.v_proj", "mlp.up_proj", "mlp.gate")
NAMES = [f"layers.{number}.{inner}" for number in range(12) for inner in INNER]


@given(st.sets(st.sampled_from(NAMES), min_size=1))
def test_a_list_and_a_regular_expression_choose_the_same(wanted: set[str]) -> None:
    """Whole names choose exactly themselves: `layers.1.` is no part of `layers.11.`."""
    expected = tuple(name for name in NAMES if name in wanted)
    assert lora_names(sorted(wanted), NAMES).chosen == expected
    assert lora_names("|".join(map(re.escape, sorted(wanted))), NAMES).chosen == expected


@given(st.sampled_from(INNER), st.sampled_from(INNER))
def test_last_parts_choose_every_layer(one: str, other: str) -> None:
    found = lora_names([one.split(".")[1], other], NAMES).chosen
    assert found == tuple(name for name in NAMES if name.endswith((one, other)))
    assert set(lora_names("all-linear", NAMES).chosen) == {*NAMES}


def test_experts_are_left_out_or_refused() -> None:
    experts = [f"layers.0.mlp.experts.{number}.up_proj" for number in range(3)]
    found = lora_names("all-linear", [*NAMES, *experts])
    assert found.chosen == tuple(NAMES) and found.left_out == tuple(experts)
    with pytest.raises(TrainError, match="experts that only some tokens reach get no LoRA"):
        lora_names(["up_proj"], [*NAMES, *experts])


class Mixture(nn.Module):
    """A layer with a router, and experts in one tensor, as in models of transformers."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(4, 3, bias=False)
        self.experts = nn.Module()
        self.experts.gate_up_proj = nn.Parameter(torch.zeros(3, 8, 4))
        self.norm = nn.LayerNorm(4)


def test_matrices_that_are_no_linear_layers_are_known() -> None:
    layers = [Mixture(), Mixture()]
    assert names_of_other_matrices(layers) == ("layers.0.experts.gate_up_proj", "layers.1.experts.gate_up_proj")
    assert shapes_of_linear_layers(layers) == {"layers.0.gate": (4, 3), "layers.1.gate": (4, 3)}
    assert [name for name, _ in named_linear_layers(layers)] == ["layers.0.gate", "layers.1.gate"]


@given(st.integers(1, 6), st.integers(1, 6), st.integers(1, 4), st.floats(0.1, 8))
def test_a_merged_layer_computes_what_both_paths_computed(inputs: int, outputs: int, rank: int, scale: float) -> None:
    generator = torch.Generator().manual_seed(inputs * 100 + outputs * 10 + rank)

    def drawn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    linear = nn.Linear(inputs, outputs)
    x, first, second = drawn(5, inputs), drawn(rank, inputs), drawn(outputs, rank)
    expected = linear(x) + scale * (x @ first.T @ second.T)
    add_product(linear, first, second, scale)
    torch.testing.assert_close(linear(x), expected, rtol=1e-4, atol=1e-4)


def test_texts_differ_where_runs_differ() -> None:
    texts = [
        TrainedConfig(**keys).text  # type: ignore[arg-type]
        for keys in (
            {}, {"trained": "projector"}, {"trained": "decoder"}, {"trained": {"layers": [0, 1]}},
            {"trained": {"layers": [0, 1], "projector": True}}, {"trained": "lora"}, {"lora": {"rank": 8}},
            {"lora": {"alpha": 8.0}}, {"lora": {"dropout": 0.1}}, {"lora": {"targets": ["q_proj"]}},
            {"lora": {"projector": False}},
        )
    ]  # fmt: skip
    assert len({*texts}) == len(texts)
    assert TrainedConfig(lora=LoraSettings()).text == TrainedConfig(trained="lora").text
    assert TrainedConfig(trained="all").text == TrainedConfig().text == "all"
