"""What `save_model` writes against the original's own files, and against what the converters of llama.cpp look for."""

import json
import re
import shutil
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from torch import Tensor

from alignkd.vlm.families.mobilevlm.weights.checkpoint import load_model
from alignkd.vlm.families.mobilevlm.weights.saving import save_model
from alignkd.vlm.families.mobilevlm.weights.writer import write_weights
from alignkd.vlm.weights.files import read_weights, weight_files

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
SHARD = re.compile(r"model-\d{5}-of-\d{5}\.safetensors")


def equal(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    """To the bit, names and dtypes included."""
    return first.keys() == second.keys() and all(
        first[key].dtype == second[key].dtype and torch.equal(first[key], second[key]) for key in first
    )


@pytest.mark.parametrize("source", ["student", "teacher"])  # safetensors, .bin
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_load_save_load_is_identical_to_the_bit(golden: Path, tmp_path: Path, source: str, dtype: torch.dtype) -> None:
    original = {key: tensor.to(dtype) for key, tensor in read_weights(golden / source).items()}
    model = load_model(golden / source, vision_config=golden / "clip", dtype=dtype)
    save_model(model, tmp_path / "saved", tokenizer_from=golden / source)
    saved = read_weights(tmp_path / "saved")
    again = load_model(tmp_path / "saved", vision_config=golden / "clip", dtype=dtype).state_dict()
    assert equal(original, saved) and equal(original, dict(again))
    # Saving in another dtype is the same as loading in it.
    full = load_model(golden / source, vision_config=golden / "clip")
    save_model(full, tmp_path / "narrowed", tokenizer_from=golden / source, dtype=dtype)
    assert equal(saved, read_weights(tmp_path / "narrowed"))


def test_files_equal_those_of_the_original(golden: Path, tmp_path: Path) -> None:
    student = golden / "student"
    save_model(load_model(student, vision_config=golden / "clip"), tmp_path, tokenizer_from=student)
    assert {file.name for file in tmp_path.iterdir()} == {file.name for file in student.iterdir()}
    for file in student.iterdir():
        if file.suffix != ".safetensors":
            assert (tmp_path / file.name).read_bytes() == file.read_bytes(), file.name
    with (
        safe_open(student / "model.safetensors", "pt") as theirs,
        safe_open(tmp_path / "model.safetensors", "pt") as ours,
    ):
        assert sorted(theirs.keys()) == sorted(ours.keys())
        assert theirs.metadata() == ours.metadata() == {"format": "pt"}
    assert equal(read_weights(student), read_weights(tmp_path))


def test_config_keeps_every_field_and_follows_the_saved_dtype(golden: Path, tmp_path: Path) -> None:
    shutil.copytree(golden / "student", tmp_path / "student")
    raw = json.loads((tmp_path / "student/config.json").read_text())
    raw |= {"_name_or_path": "org/model", "max_sequence_length": 2048, "n_head": 16, "anything": {"else": [1, None]}}
    (tmp_path / "student/config.json").write_text(json.dumps(raw))
    model = load_model(tmp_path / "student", vision_config=golden / "clip", dtype=torch.bfloat16)
    save_model(model, tmp_path / "saved", tokenizer_from=tmp_path / "student")
    assert json.loads((tmp_path / "saved/config.json").read_text()) == raw | {"torch_dtype": "bfloat16"}


@pytest.fixture(scope="module")
def sharded(golden: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The student in shards of at most 50 kB, over an older export of one file."""
    folder = tmp_path_factory.mktemp("sharded")
    model = load_model(golden / "student", vision_config=golden / "clip", dtype=torch.bfloat16)
    save_model(model, folder, tokenizer_from=golden / "student")
    assert (folder / "model.safetensors").is_file()
    save_model(model, folder, tokenizer_from=golden / "student", max_shard_bytes=50_000)
    return folder


def shard_contents(folder: Path) -> Iterator[tuple[str, dict[str, Tensor]]]:
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, "pt") as opened:
            assert opened.metadata() == {"format": "pt"}
            yield file.name, {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118


def test_shards_load_like_one_file_and_the_index_tells_the_truth(sharded: Path, golden: Path) -> None:
    index = json.loads((sharded / "model.safetensors.index.json").read_text())
    shards = dict(shard_contents(sharded))
    assert len(shards) > 3 and all(SHARD.fullmatch(name) for name in shards)
    assert index["weight_map"] == {key: name for name, tensors in shards.items() for key in tensors}
    tensors = {key: tensor for part in shards.values() for key, tensor in part.items()}
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in tensors.values())
    loaded = load_model(sharded, vision_config=golden / "clip", dtype=torch.bfloat16).state_dict()
    assert equal(dict(loaded), {key: t.to(torch.bfloat16) for key, t in read_weights(golden / "student").items()})
    sizes = [sum(tensor.nbytes for tensor in part.values()) for part in shards.values()]
    alone = max(tensor.nbytes for tensor in tensors.values())
    assert max(sizes) <= max(50_000, alone)


def test_one_file_after_shards_leaves_no_shard_behind(sharded: Path, golden: Path, tmp_path: Path) -> None:
    shutil.copytree(sharded, tmp_path / "again")
    model = load_model(golden / "student", vision_config=golden / "clip")
    with torch.no_grad():
        model.lm_head.weight += 1
    save_model(model, tmp_path / "again", tokenizer_from=golden / "student")
    assert [file.name for file in weight_files(tmp_path / "again")] == ["model.safetensors"]
    assert not list((tmp_path / "again").glob("*-of-*")) and not list((tmp_path / "again").glob("*.index.json"))
    assert torch.equal(read_weights(tmp_path / "again")["lm_head.weight"], model.lm_head.weight)


def test_converters_of_llama_cpp_find_what_they_need(sharded: Path, golden: Path) -> None:
    # llava_surgery_v2.py: all of the projector's tensors from ONE file, `model` in its name, `.safetensors` at its end.
    holders = [
        [key for key in tensors if key.startswith("model.mm_projector")]
        for name, tensors in shard_contents(sharded)
        if "model" in name and any(key.startswith("model.mm_projector") for key in tensors)
    ]
    wanted = [key for key in read_weights(golden / "student") if key.startswith("model.mm_projector")]
    assert [sorted(keys) for keys in holders] == [sorted(wanted)]
    # convert_image_encoder_to_gguf.py --projector-type ldpv2 renames exactly these two stems.
    assert {re.sub(r"model\.mm_projector\.(mlp\.mlp|peg\.peg)\.\d\.(weight|bias)", "", key) for key in wanted} == {""}
    # convert_legacy_llama.py starts at the first shard of this name.
    assert len(list(sharded.glob("model-00001-of-*.safetensors"))) == 1


def test_a_vision_tower_config_inside_the_checkpoint_travels_without_weights(golden: Path, tmp_path: Path) -> None:
    source = tmp_path / "student"
    shutil.copytree(golden / "student", source)
    shutil.copytree(golden / "clip", source / "tower")
    raw = json.loads((source / "config.json").read_text()) | {"mm_vision_tower": "tower"}
    (source / "config.json").write_text(json.dumps(raw))
    save_model(load_model(source), tmp_path / "saved", tokenizer_from=source)
    assert sorted(file.name for file in (tmp_path / "saved/tower").iterdir()) == [
        "config.json",
        "preprocessor_config.json",
    ]
    assert equal(dict(load_model(tmp_path / "saved").state_dict()), read_weights(source))


def test_a_tower_config_outside_the_checkpoint_is_not_copied(golden: Path, tmp_path: Path) -> None:
    source = tmp_path / "models/student"
    shutil.copytree(golden / "student", source)
    shutil.copytree(golden / "clip", tmp_path / "models/clip")
    raw = json.loads((source / "config.json").read_text()) | {"mm_vision_tower": "../clip"}
    (source / "config.json").write_text(json.dumps(raw))
    save_model(load_model(source), tmp_path / "out/saved", tokenizer_from=source)
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["saved"]


@given(
    sizes=st.lists(st.integers(1, 40), min_size=1, max_size=12),
    projector=st.lists(st.integers(1, 40), max_size=4),
    at=st.integers(0, 12),
    limit=st.integers(1, 200),
)
def test_any_cut_keeps_order_limit_and_projector(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[int], projector: list[int], at: int, limit: int
) -> None:
    folder = tmp_path_factory.mktemp("cut")
    named = [(f"layer.{number}", size) for number, size in enumerate(sizes)]
    named[at:at] = [(f"model.mm_projector.{number}", size) for number, size in enumerate(projector)]
    weights = {name: torch.randn(size) for name, size in named}
    files = write_weights(weights, folder, dtype=torch.float16, max_shard_bytes=limit)
    assert weight_files(folder) == files
    assert equal(read_weights(folder), {name: tensor.half() for name, tensor in weights.items()})
    shards = [list(tensors) for _, tensors in shard_contents(folder)]
    order = list(weights)
    assert all(max(map(order.index, one)) < min(map(order.index, two)) for one, two in pairwise(shards))
    assert sum(any("mm_projector" in key for key in shard) for shard in shards) == bool(projector)
    for shard in shards:
        alone = len(shard) == 1 or all("mm_projector" in key for key in shard)
        assert alone or sum(2 * weights[key].numel() for key in shard) <= limit
