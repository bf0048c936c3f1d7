"""A teacher in 8 or 4 bits: targets of the first attention layer and the vision embeddings are exact."""

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest
import tiny_families
import torch
from torch import nn

from alignkd.vlm.errors import InputError
from alignkd.vlm.families.generation import generate_greedy
from alignkd.vlm.families.huggingface.model.parts import layers_of
from alignkd.vlm.families.huggingface.model.weights.quantization import is_quantizable

needs_bitsandbytes = pytest.mark.skipif(
    importlib.util.find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed"
)
NAMES = ("gemma3", "qwen3_vl", "lfm2_vl")


@pytest.fixture(scope="module", params=NAMES)
def wide(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, make_case: Any) -> Any:
    """bitsandbytes needs rows of at least one block of 64 weights, and on some CPUs a multiple of 32 rows."""
    folder = tmp_path_factory.mktemp("wide")
    tiny_families.build(request.param, folder, hidden_size=128, heads=4, num_layers=4)
    return make_case(request.param, folder)


@needs_bitsandbytes
@torch.no_grad()
@pytest.mark.parametrize(("kind", "limit"), [("int8", 0.1), ("nf4", 0.6)])
def test_only_layers_behind_the_first_attention_are_quantised(wide: Any, kind: str, limit: float) -> None:
    case = wide
    exact, model, batch = case.model, case.load(quantization=kind), case.batch
    layer = case.checkpoint.config.attention_layer
    kinds = [
        {type(module) for module in one.modules() if isinstance(module, nn.Linear) and is_quantizable(module)}
        for one in layers_of(model.model)
    ]
    assert all(found == {nn.Linear} for found in kinds[: layer + 1])
    assert all(found and nn.Linear not in found for found in kinds[layer + 1 :])

    rows = torch.arange(batch.input_ids_BL.shape[1])[None].expand(len(case.samples), -1)
    attention, hidden, embeddings = [], [], []
    for one in (exact, model):
        vision = one.encode_images(batch.images, batch.image_samples_I.tolist())
        with one.watched_first_layer() as first:
            hidden.append(one.hidden_states(batch, vision))
        attention.append(first.attention(rows, rows))
        embeddings.append(vision.embeddings_PD)
    assert torch.equal(*attention) and torch.equal(*embeddings)
    difference = float((hidden[0] - hidden[1]).norm() / hidden[0].norm())
    assert len(kinds) > layer + 1 and 1e-4 < difference < limit
    (ids,) = generate_greedy(model, [case.samples[0].example], max_new_tokens=3, stop_ids=())
    assert len(ids) == 3


def test_without_bitsandbytes_it_is_one_line(cases: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(InputError, match=r"quantization 'nf4' needs bitsandbytes.*alignkd\[quantized\]") as error:
        cases["gemma3"].load(quantization="nf4")
    assert "\n" not in str(error.value)


@needs_bitsandbytes
def test_a_quantised_model_is_never_saved(wide: Any, tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="never saved"):
        wide.checkpoint.save(wide.load(quantization="int8"), tmp_path)
