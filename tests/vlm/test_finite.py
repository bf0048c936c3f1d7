"""Weights that are not finite are refused where they are read, with file and name."""

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from alignkd.vlm.errors import InputError
from alignkd.vlm.families.mobilevlm.weights.checkpoint import MobileVLMCheckpoint, load_model
from alignkd.vlm.finite import check_finite, is_finite
from alignkd.vlm.stem.extract import extract_stem

KEY = "model.layers.0.self_attn.q_proj.weight"


@pytest.fixture
def checkpoint(golden: Path, tmp_path: Path) -> Path:
    shutil.copytree(golden / "student", tmp_path / "student")
    return tmp_path / "student"


def put(checkpoint: Path, value: float) -> None:
    weights = load_file(checkpoint / "model.safetensors")
    weights[KEY][1, 2] = value
    save_file(weights, checkpoint / "model.safetensors")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_model_with_one_such_value_is_not_loaded(
    value: float, dtype: torch.dtype, checkpoint: Path, golden: Path
) -> None:
    put(checkpoint, value)
    with pytest.raises(InputError) as error:
        load_model(checkpoint, vision_config=golden / "clip", dtype=dtype)
    named = f"{checkpoint / 'model.safetensors'}: {KEY} holds 1 of 4096 values that are NaN or infinite"
    assert str(error.value).startswith(named) and "\n" not in str(error.value)


def test_a_value_beyond_float16_is_another_matter(checkpoint: Path, golden: Path) -> None:
    put(checkpoint, 1e5)
    with pytest.raises(InputError, match=rf"{KEY} does not fit torch\.float16; choose dtype bfloat16 or float32"):
        load_model(checkpoint, vision_config=golden / "clip", dtype=torch.float16)
    load_model(checkpoint, vision_config=golden / "clip", dtype=torch.bfloat16)


def test_a_stem_takes_no_such_value_along(checkpoint: Path, golden: Path, tmp_path: Path) -> None:
    put(checkpoint, float("nan"))
    with pytest.raises(InputError, match=f"{KEY} holds 1 of 4096 values"):
        extract_stem(
            MobileVLMCheckpoint.open(checkpoint, vision_config=golden / "clip"), tmp_path / "stem", dtype=torch.float32
        )
    assert not (tmp_path / "stem").exists()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_any_place_and_any_kind(dtype: torch.dtype) -> None:
    tensor = torch.linspace(-3, 3, 1001).to(dtype)
    assert is_finite(tensor) and is_finite(tensor[:0]) and is_finite(tensor.long())
    for place in (0, 500, 1000):
        for value in (float("nan"), float("inf"), -float("inf")):
            broken = tensor.clone()
            broken[place] = value
            assert not is_finite(broken)
            with pytest.raises(InputError, match="f: name holds 1 of 1001 values"):
                check_finite(broken, "name", Path("f"))
