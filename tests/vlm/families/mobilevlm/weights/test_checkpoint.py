"""MobileVLMCheckpoint folders: loading and refusing."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from alignkd.vlm.errors import InputError
from alignkd.vlm.families.mobilevlm.model.config import load_config
from alignkd.vlm.families.mobilevlm.weights.checkpoint import MobileVLMCheckpoint, load_model, load_preparation
from alignkd.vlm.families.mobilevlm.weights.sources import TOWER_PREFIX
from alignkd.vlm.weights.files import read_weights


@pytest.fixture
def checkpoint(golden: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "student"
    shutil.copytree(golden / "student", folder)
    return folder


def edit_config(folder: Path, **changes: object) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))


def test_no_parameter_or_buffer_is_left_on_the_meta_device(golden: Path) -> None:
    model = load_model(golden / "student", vision_config=golden / "clip", dtype=torch.bfloat16)
    tensors = [*model.named_parameters(), *model.named_buffers()]
    assert {tensor.device.type for _, tensor in tensors} == {"cpu"}
    assert {tensor.dtype for _, tensor in model.named_parameters()} == {torch.bfloat16}


def test_safetensors_win_over_bin(checkpoint: Path, golden: Path) -> None:
    weights = read_weights(checkpoint)
    torch.save({key: torch.zeros_like(tensor) for key, tensor in weights.items()}, checkpoint / "pytorch_model.bin")
    loaded = load_model(checkpoint, vision_config=golden / "clip").state_dict()
    assert all(torch.equal(loaded[key], tensor) for key, tensor in weights.items())


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "before torch 1.6"])
def test_bin_files_of_any_age_and_what_old_transformers_saved_in_them(
    checkpoint: Path, golden: Path, zipped: bool
) -> None:
    weights = read_weights(checkpoint)
    (checkpoint / "model.safetensors").unlink()
    derived = {f"model.layers.{layer}.self_attn.rotary_emb.inv_freq": torch.ones(8) for layer in range(3)}
    derived[TOWER_PREFIX + "vision_model.embeddings.position_ids"] = torch.arange(577)[None]
    names = sorted(weights)
    files = ["pytorch_model-00001-of-00002.bin", "pytorch_model-00002-of-00002.bin"]
    parts = {files[0]: names[::2] + list(derived), files[1]: names[1::2]}
    for file, keys in parts.items():
        tensors = {key: (weights | derived)[key] for key in keys}
        torch.save(tensors, checkpoint / file, _use_new_zipfile_serialization=zipped)
    weight_map = {key: file for file, keys in parts.items() for key in keys}
    (checkpoint / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": weight_map}))
    loaded = load_model(checkpoint, vision_config=golden / "clip").state_dict()
    assert loaded.keys() == weights.keys()
    assert all(torch.equal(loaded[key], tensor) for key, tensor in weights.items())
    (checkpoint / files[1]).unlink()
    with pytest.raises(InputError, match=rf"names {files[1]}, which does not exist; finish the download"):
        load_model(checkpoint, vision_config=golden / "clip")


class Malice:
    """Unpickled without care, it creates a file."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[object, ...]:
        return (Path.touch, (self.target,))


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "before torch 1.6"])
def test_a_malicious_pickle_is_refused_and_not_run(
    checkpoint: Path, golden: Path, tmp_path: Path, zipped: bool
) -> None:
    weights: dict[str, object] = dict(read_weights(checkpoint))
    (checkpoint / "model.safetensors").unlink()
    target, file = tmp_path / "created", checkpoint / "pytorch_model.bin"
    torch.save(weights | {"model.norm.weight": Malice(target)}, file, _use_new_zipfile_serialization=zipped)
    for read in (lambda: load_model(checkpoint, vision_config=golden / "clip"), lambda: read_weights(checkpoint)):
        with pytest.raises(InputError, match=r"pytorch_model.bin: damaged, or holds other objects than") as error:
            read()
        assert "\n" not in str(error.value)
    assert not target.exists()
    torch.load(file, weights_only=False)
    assert target.exists(), "the pickle must be one that does harm"


def test_a_bin_file_of_something_else_is_refused(checkpoint: Path) -> None:
    (checkpoint / "model.safetensors").unlink()
    for value in ([torch.zeros(2)], {"model": {"a": torch.zeros(2)}}, {"step": 3}):
        torch.save(value, checkpoint / "pytorch_model.bin")
        with pytest.raises(InputError, match=r"pytorch_model.bin: not a mapping of names to tensors"):
            read_weights(checkpoint)


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ("{", "broken JSON at line 1"),
        ('["a"]', "no 'weight_map'"),
        ('{"weight_map": {}}', "no 'weight_map'"),
        ('{"weight_map": {"a": 3}}', "no 'weight_map'"),
        ('{"weight_map": {"a": "../other/model.safetensors"}}', "names ../other/model.safetensors, expected"),
        ('{"weight_map": {"a": "/etc/model.safetensors"}}', "names /etc/model.safetensors, expected"),
        ('{"weight_map": {"a": "sub/model.safetensors"}}', "names sub/model.safetensors, expected"),
        ('{"weight_map": {"a": ".."}}', "names .., expected"),
        (
            '{"weight_map": {"a": "pytorch_model.bin"}}',
            "names pytorch_model.bin, expected .safetensors files next to it",
        ),
    ],
)
def test_a_strange_index_is_refused(checkpoint: Path, golden: Path, index: str, message: str) -> None:
    (checkpoint.parent / "other").mkdir()
    for place in (checkpoint.parent / "other", checkpoint):
        shutil.copy(golden / "student/model.safetensors", place / "model.safetensors")
    torch.save({}, checkpoint / "pytorch_model.bin")
    (checkpoint / "model.safetensors.index.json").write_text(index)
    with pytest.raises(InputError) as error:
        load_model(checkpoint, vision_config=golden / "clip")
    assert message in str(error.value) and "model.safetensors.index.json" in str(error.value)
    assert "\n" not in str(error.value)


def test_unknown_missing_and_misshapen_keys_are_all_listed(checkpoint: Path, golden: Path) -> None:
    weights = read_weights(checkpoint)
    del weights["model.norm.weight"]
    weights["model.extra"] = torch.zeros(1)
    weights["lm_head.weight"] = torch.zeros(3, 4)
    save_file(weights, checkpoint / "model.safetensors")
    with pytest.raises(InputError) as error:
        load_model(checkpoint, vision_config=golden / "clip")
    for part in ("missing model.norm.weight", "unknown model.extra", "lm_head.weight has shape (3, 4)"):
        assert part in str(error.value)
    assert "\n" not in str(error.value)


def test_keys_that_differ_in_their_layer_alone_are_one_entry(checkpoint: Path, golden: Path) -> None:
    weights = read_weights(checkpoint)
    cut = {key: tensor for key, tensor in weights.items() if not key.startswith("model.layers.")}
    cut |= {f"model.layers.{layer}.mlp.up_proj.weight": torch.zeros(2, 2) for layer in (0, 2)}
    cut |= {f"model.layers.{layer}.lora.weight": torch.zeros(1) for layer in range(40)}
    save_file(cut, checkpoint / "model.safetensors")
    with pytest.raises(InputError) as error:
        load_model(checkpoint, vision_config=golden / "clip")
    message = str(error.value)
    for part in (
        "missing model.layers.{0-2}.mlp.down_proj.weight; ",
        "missing model.layers.1.mlp.up_proj.weight; ",
        "model.layers.{0,2}.mlp.up_proj.weight has shape (2, 2), expected (128, 64); ",
        "unknown model.layers.{0-39}.lora.weight",
    ):
        assert part in message, message
    assert message.count("model.layers") == 3 + 8


def test_a_key_in_two_files_is_refused(checkpoint: Path, golden: Path) -> None:
    weights = read_weights(checkpoint)
    shutil.move(checkpoint / "model.safetensors", checkpoint / "a.safetensors")
    save_file({"lm_head.weight": torch.zeros_like(weights["lm_head.weight"])}, checkpoint / "b.safetensors")
    weight_map = dict.fromkeys(weights, "a.safetensors") | {"lm_head.weight": "b.safetensors"}
    (checkpoint / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(InputError, match=r"lm_head.weight is in two files, the second b.safetensors"):
        load_model(checkpoint, vision_config=golden / "clip")


def without_tower(checkpoint: Path) -> dict[str, torch.Tensor]:
    """The checkpoint as the first generation had it: the tower is taken out and returned, as CLIP names it."""
    weights = read_weights(checkpoint)
    tower = {key: tensor for key, tensor in weights.items() if key.startswith(TOWER_PREFIX)}
    save_file({key: weights[key] for key in weights.keys() - tower.keys()}, checkpoint / "model.safetensors")
    return {key.removeprefix(TOWER_PREFIX): tensor for key, tensor in tower.items()}


def test_a_tower_of_its_own_is_read_where_mm_vision_tower_leads(
    checkpoint: Path, golden: Path, caplog: pytest.LogCaptureFixture
) -> None:
    whole = read_weights(checkpoint)
    tower = without_tower(checkpoint)
    clip = tower | {
        "text_model.x": torch.zeros(2),
        "logit_scale": torch.ones(()),
        "vision_model.embeddings.position_ids": torch.arange(577),
    }
    (checkpoint / "tower").mkdir()
    shutil.copy(golden / "clip/config.json", checkpoint / "tower")
    torch.save(clip, checkpoint / "tower/pytorch_model.bin")
    edit_config(checkpoint, mm_vision_tower="tower")
    loaded = load_model(checkpoint).state_dict()
    assert loaded.keys() == whole.keys()
    assert all(torch.equal(loaded[key], tensor) for key, tensor in whole.items())
    assert f"{checkpoint} holds no vision tower; its weights are read from {checkpoint / 'tower'}" in caplog.text
    before = MobileVLMCheckpoint.open(checkpoint).fingerprint
    tower["vision_model.pre_layrnorm.weight"] += 1
    torch.save(tower, checkpoint / "tower/pytorch_model.bin")
    assert MobileVLMCheckpoint.open(checkpoint).fingerprint != before, "the tower decides the teacher's outputs"


def test_a_checkpoint_without_any_tower_lists_what_is_missing(checkpoint: Path, golden: Path) -> None:
    without_tower(checkpoint)
    for tower in ("none/../here", str(golden / "none"), "."):  # no such folders; a folder without weights of a tower
        edit_config(checkpoint, mm_vision_tower=tower)
        with pytest.raises(InputError) as error:
            load_model(checkpoint, vision_config=golden / "clip")
        layers = f"missing {TOWER_PREFIX}vision_model.encoder.layers.{{0-2}}.mlp.fc1.bias; "
        assert layers in str(error.value) and "mm_vision_tower in config.json must name one" in str(error.value)


def test_a_cut_weight_file_is_named(checkpoint: Path, golden: Path) -> None:
    file = checkpoint / "model.safetensors"
    weights = read_weights(checkpoint)
    file.write_bytes(file.read_bytes()[:5000])
    with pytest.raises(InputError, match=r"model.safetensors: damaged weight file"):
        load_model(checkpoint, vision_config=golden / "clip")
    file.unlink()
    file = checkpoint / "pytorch_model.bin"
    torch.save(weights, file)
    file.write_bytes(file.read_bytes()[:5000])
    with pytest.raises(InputError, match=r"pytorch_model.bin: damaged"):
        load_model(checkpoint, vision_config=golden / "clip")
    file.unlink()
    with pytest.raises(InputError, match=r"no model.safetensors or pytorch_model.bin .*; finish the download"):
        load_model(checkpoint, vision_config=golden / "clip")


def test_a_loaded_model_does_not_depend_on_its_files_any_more(checkpoint: Path, golden: Path) -> None:
    before = read_weights(checkpoint)
    model = load_model(checkpoint, vision_config=golden / "clip")
    with (checkpoint / "model.safetensors").open("r+b") as file:
        file.truncate(100)
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())


def test_an_unusable_device_is_one_line(checkpoint: Path, golden: Path) -> None:
    for device in ("kuda", "cuda:77", "meta:x"):
        with pytest.raises(InputError, match=f"device '{device}' cannot be used") as error:
            load_model(checkpoint, vision_config=golden / "clip", device=device)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "qwen2"}, "model_type 'qwen2', expected one of 'mobilevlm', 'llava', 'llava_llama'"),
        ({"model_type": "llava", "text_config": {}}, "has text_config, so its weights have transformers' own names"),
        ({"mm_projector_type": "mlp"}, "mm_projector_type 'mlp', expected one of ldpnetv2, ldpnet, linear, mlp"),
        ({"mm_projector_type": "mlp0x_gelu"}, "mm_projector_type 'mlp0x_gelu', expected"),
        ({"mm_projector_type": ["linear"]}, r"mm_projector_type \['linear'\], expected"),
        ({"image_aspect_ratio": "anyres"}, "image_aspect_ratio 'anyres', expected one of None, pad, square"),
        ({"mm_patch_merge_type": "spatial_unpad"}, "mm_patch_merge_type 'spatial_unpad', only 'flat' is supported"),
        ({"mm_hidden_size": 99}, "mm_hidden_size 99, but the vision config has hidden_size 32"),
        ({"mm_vision_select_feature": "cls_patch"}, "mm_vision_select_feature 'cls_patch', only 'patch' is supported"),
        ({"mm_use_im_start_end": True}, "mm_use_im_start_end True, only False is supported"),
        ({"tie_word_embeddings": True}, "tie_word_embeddings True, only False is supported"),
        ({"hidden_size": "wide"}, "config.json: .*hidden_size.*; copy config.json from the original again"),
        ({"num_attention_heads": 7}, "config.json: .*hidden size.*; copy config.json from the original again"),
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


def test_a_tokenizer_of_another_checkpoint_is_refused(checkpoint: Path, golden: Path) -> None:
    edit_config(checkpoint, vocab_size=100)
    with pytest.raises(InputError, match=r"512 pieces, config.json vocab_size 100"):
        load_preparation(checkpoint, template="v1", vision_config=golden / "clip")


def test_the_fingerprint_follows_the_bytes(checkpoint: Path, golden: Path) -> None:
    before = MobileVLMCheckpoint.open(checkpoint).fingerprint
    assert before == MobileVLMCheckpoint.open(golden / "student").fingerprint
    weights = read_weights(checkpoint)
    weights["model.norm.weight"][0] += 1e-3
    save_file(weights, checkpoint / "model.safetensors")
    assert MobileVLMCheckpoint.open(checkpoint).fingerprint != before


def test_neither_a_folder_nor_a_hub_id(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such checkpoint folder"):
        load_model(tmp_path / "nothing")
