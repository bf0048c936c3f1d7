"""Checkpoint folders: loading, saving, refusing."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from vlm.checkpoint import load_example_builder, load_model, read_weights, save_model, weights_fingerprint
from vlm.config import load_config
from vlm.errors import InputError


@pytest.fixture
def checkpoint(golden: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "student"
    shutil.copytree(golden / "student", folder)
    return folder


def edit_config(folder: Path, **changes: object) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))


def test_load_save_load_is_identical_to_the_bit(golden: Path, tmp_path: Path) -> None:
    model = load_model(golden / "teacher", vision_config=golden / "clip")  # a .bin checkpoint
    save_model(model, tmp_path / "saved", tokenizer_from=golden / "teacher")
    again = load_model(tmp_path / "saved", vision_config=golden / "clip")
    original = read_weights(golden / "teacher")
    saved = read_weights(tmp_path / "saved")
    assert saved.keys() == original.keys() == again.state_dict().keys()
    assert all(torch.equal(saved[key], original[key]) for key in original)
    assert (tmp_path / "saved" / "tokenizer.model").read_bytes() == (golden / "teacher/tokenizer.model").read_bytes()


def test_no_parameter_or_buffer_is_left_on_the_meta_device(golden: Path) -> None:
    model = load_model(golden / "student", vision_config=golden / "clip", dtype=torch.bfloat16)
    tensors = [*model.named_parameters(), *model.named_buffers()]
    assert {tensor.device.type for _, tensor in tensors} == {"cpu"}
    assert {tensor.dtype for _, tensor in model.named_parameters()} == {torch.bfloat16}


def test_sharded_weights_equal_single_ones(checkpoint: Path, golden: Path) -> None:
    weights = load_file(checkpoint / "model.safetensors")
    names = sorted(weights)
    parts = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, keys in parts.items():
        save_file({key: weights[key] for key in keys}, checkpoint / file)
    weight_map = {key: file for file, keys in parts.items() for key in keys}
    (checkpoint / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    (checkpoint / "model.safetensors").unlink()
    sharded = load_model(checkpoint, vision_config=golden / "clip").state_dict()
    assert all(torch.equal(sharded[key], weights[key]) for key in weights)
    (checkpoint / "b.safetensors").unlink()
    with pytest.raises(InputError, match=r"names b.safetensors, which is not there"):
        load_model(checkpoint, vision_config=golden / "clip")


def test_unknown_missing_and_misshapen_keys_are_all_listed(checkpoint: Path, golden: Path) -> None:
    weights = load_file(checkpoint / "model.safetensors")
    del weights["model.norm.weight"]
    weights["model.extra"] = torch.zeros(1)
    weights["lm_head.weight"] = torch.zeros(3, 4)
    save_file(weights, checkpoint / "model.safetensors")
    with pytest.raises(InputError) as error:
        load_model(checkpoint, vision_config=golden / "clip")
    for part in ("missing model.norm.weight", "unknown model.extra", "lm_head.weight has shape (3, 4)"):
        assert part in str(error.value)
    assert "\n" not in str(error.value)


def test_a_cut_weight_file_is_named(checkpoint: Path, golden: Path) -> None:
    file = checkpoint / "model.safetensors"
    file.write_bytes(file.read_bytes()[:5000])
    with pytest.raises(InputError, match=r"model.safetensors: broken weight file"):
        load_model(checkpoint, vision_config=golden / "clip")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "llava"}, "model_type 'llava', expected 'mobilevlm'"),
        ({"mm_projector_type": "mlp"}, "mm_projector_type 'mlp'"),
        ({"mm_hidden_size": 99}, "mm_hidden_size 99, but the vision config has hidden_size 32"),
    ],
)
def test_other_models_are_refused(checkpoint: Path, golden: Path, changes: dict[str, object], message: str) -> None:
    edit_config(checkpoint, **changes)
    with pytest.raises(InputError, match=message):
        load_config(checkpoint, vision_config=golden / "clip")


def test_known_and_relative_vision_towers_need_no_override(checkpoint: Path, golden: Path) -> None:
    shutil.copytree(golden / "clip", checkpoint / "tower")
    edit_config(checkpoint, mm_vision_tower="tower")
    assert load_config(checkpoint).vision.hidden_size == 32
    edit_config(checkpoint, mm_vision_tower="openai/clip-vit-large-patch14-336", mm_hidden_size=1024)
    assert (load_config(checkpoint).vision.num_hidden_layers, load_config(checkpoint).vision_tokens) == (24, 144)


def test_a_tower_inside_the_checkpoint_is_saved_with_it(checkpoint: Path, golden: Path, tmp_path: Path) -> None:
    shutil.copytree(golden / "clip", checkpoint / "tower")
    edit_config(checkpoint, mm_vision_tower="tower")
    save_model(load_model(checkpoint), tmp_path / "saved", tokenizer_from=checkpoint)
    again = load_model(tmp_path / "saved").state_dict()
    assert all(torch.equal(again[key], tensor) for key, tensor in read_weights(checkpoint).items())


def test_a_tokenizer_of_another_checkpoint_is_refused(checkpoint: Path, golden: Path) -> None:
    edit_config(checkpoint, vocab_size=100)
    with pytest.raises(InputError, match=r"512 pieces, config.json vocab_size 100"):
        load_example_builder(checkpoint, template="v1", vision_config=golden / "clip")


def test_the_fingerprint_follows_the_bytes(checkpoint: Path, golden: Path) -> None:
    before = weights_fingerprint(checkpoint)
    assert before == weights_fingerprint(golden / "student")
    weights = load_file(checkpoint / "model.safetensors")
    weights["model.norm.weight"][0] += 1e-3
    save_file(weights, checkpoint / "model.safetensors")
    assert weights_fingerprint(checkpoint) != before


def test_neither_a_folder_nor_a_hub_id(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such checkpoint folder"):
        load_model(tmp_path / "nothing")
