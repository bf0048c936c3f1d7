"""The stem of every architecture that has one is its live model, op for op; all others are refused with the reason."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny_families
import torch
from torch import Tensor

from alignkd.vlm.attention.layer import AttentionLayer
from alignkd.vlm.errors import InputError
from alignkd.vlm.families.huggingface.stem.cut import WITH_STEM
from alignkd.vlm.families.open import open_checkpoint
from alignkd.vlm.inputs.batch import SequenceBatch
from alignkd.vlm.stem.checks import check_same_tower
from alignkd.vlm.stem.extract import extract_stem, extracted_bytes
from alignkd.vlm.stem.file import open_stem, read_stem_info
from alignkd.vlm.stem.towers import same_tower, why_no_stem
from alignkd.vlm.weights.tensor_file import open_tensors

FAMILIES = [name for name in (*WITH_STEM, "ministral3") if name in tiny_families.FAMILIES]
WITHOUT = {
    "qwen2_5_vl": "the projector of model_type 'qwen2_5_vl' is inside its vision tower",
    "qwen3_vl": "the projector of model_type 'qwen3_vl' is inside its vision tower",
    "glm4v": "the projector of model_type 'glm4v' is inside its vision tower",
    "gemma4": "the embeddings of model_type 'gemma4' are one table for all layers",
}


def attention_of(layer: AttentionLayer, batch: SequenceBatch) -> Tensor:
    """All rows of all samples, 0 where padded."""
    every = torch.arange(batch.input_ids_BL.shape[1]).expand_as(batch.input_ids_BL)
    real = (every < batch.lengths_B[:, None])[:, None, :, None]
    return layer.attention(every, every, chunk_bytes=1 << 12) * real


@pytest.fixture(scope="module")
def hybrid(make_case: Callable[[str, Path], Any], tmp_path_factory: pytest.TempPathFactory) -> Any:
    """LFM2-VL with two layers that have attention, 2 and 5, each after two convolutions."""
    return make_case("lfm2_vl", tiny_families.build("lfm2_vl", tmp_path_factory.mktemp("hybrid"), num_layers=6))


@torch.no_grad()
@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("last", [0, -1], ids=["first", "last"])
def test_equal_to_the_live_teacher(name: str, last: int, cases: dict[str, Any], hybrid: Any, tmp_path: Path) -> None:
    """From features of the same tower; one batch of no, one and two images, padded.

    For stems that end in the first and last layer that has attention; these models have two.
    """
    case = hybrid if name == "lfm2_vl" else cases[name]
    checkpoint, teacher, batch = case.checkpoint, case.model, case.batch
    layers = checkpoint.config.attention_layers
    assert len(layers) == 2
    layers = layers[: layers.index(layers[last]) + 1]
    depth = None if last == 0 else layers[-1] + 1
    info = extract_stem(checkpoint, tmp_path / "stem.safetensors", dtype=torch.float32, depth=depth)
    assert info.depth == layers[-1] + 1
    check_same_tower(info, teacher)
    stem, samples = open_stem(info.path, student=teacher), batch.image_samples_I.tolist()
    assert stem.depth == info.depth and stem.attention_layer == layers[0]
    expected = teacher.encode_images(batch.images, samples, features=True)
    with teacher.watched_layers(layers) as live:
        teacher.hidden_states(batch, expected)
    found = stem.vision(expected.features)
    assert found.tokens_of_image == expected.tokens_of_image
    torch.testing.assert_close(found.embeddings_PD, expected.embeddings_PD, rtol=0, atol=0)
    text = stem.table.rows(batch.input_ids_BL.masked_fill(batch.vision_mask_BL, 0))
    for asked in {layers, layers[:1], layers[-1:]}:
        own = stem.attention_layers(batch, text, found, asked)
        assert own.keys() == set(asked)
        for number in asked:
            close = {"rtol": 0, "atol": 1e-7}
            torch.testing.assert_close(attention_of(own[number], batch), attention_of(live[number], batch), **close)
    assert not list(stem.parameters()) and not stem.state_dict()
    # only what a pass to the layer needs
    with open_tensors(info.path) as file:
        names = set(file.keys())
    assert not [key for key in names if "vision_tower" in key or "vision_model" in key or "lm_head" in key]
    assert not [key for key in names if f".layers.{layers[-1]}." in key and (".mlp." in key or "o_proj" in key)]
    whole = {id(tensor) for layer in teacher.decoder_layers[: layers[-1]] for tensor in layer.parameters()}
    assert {key for key, tensor in teacher.model.named_parameters() if id(tensor) in whole} <= names
    assert info.sizes.total <= info.file_bytes < info.sizes.total + 32_768


@torch.no_grad()
@pytest.mark.parametrize("name", FAMILIES)
def test_the_tower_alone_gives_the_same_targets(name: str, cases: dict[str, Any], tmp_path: Path) -> None:
    """Without the decoder in memory: one and two images of a sample, as the live teacher encodes them."""
    checkpoint, teacher, batch = cases[name].checkpoint, cases[name].model, cases[name].batch
    info = extract_stem(checkpoint, tmp_path / "stem.safetensors", dtype=torch.float32)
    stem, tower = open_stem(info.path), info.design.load_tower(checkpoint, torch.float32)
    samples = batch.image_samples_I
    for sample in samples.unique().tolist():
        images = [image for image, of in zip(batch.images, samples.tolist(), strict=True) if of == sample]
        expected = teacher.encode_images(images, [0] * len(images))
        found = stem.vision(tower(images))
        assert found.tokens_of_image == expected.tokens_of_image
        torch.testing.assert_close(found.embeddings_PD, expected.embeddings_PD, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", WITHOUT)
def test_a_model_without_a_stem_is_refused_in_one_line(name: str, cases: dict[str, Any], tmp_path: Path) -> None:
    checkpoint = cases[name].checkpoint
    with pytest.raises(InputError) as refused:
        extract_stem(checkpoint, tmp_path / "stem", dtype=torch.float32)
    expected = "this family has no stem: store the targets (store.profile compact); "
    assert str(refused.value) == f"{checkpoint.name}: {expected}{WITHOUT[name]}"
    assert why_no_stem(checkpoint.config, checkpoint.config) == expected + WITHOUT[name]
    assert not (tmp_path / "stem").exists()


@pytest.mark.parametrize("depth", [0, 1, 99])
def test_a_depth_that_ends_in_no_attention_is_refused(depth: int, cases: dict[str, Any], tmp_path: Path) -> None:
    """The first layers of this hybrid model are convolutions."""
    checkpoint = cases["lfm2_vl"].checkpoint
    layers, count = checkpoint.config.attention_layers, checkpoint.config.num_layers
    assert layers[0] > 0
    why, near = {
        0: (f"layer -1 is not among its {count}", layers[0] + 1),
        1: ("layer 0 has no attention", layers[0] + 1),
        99: (f"layer 98 is not among its {count}", layers[-1] + 1),
    }[depth]
    with pytest.raises(InputError) as refused:
        extract_stem(checkpoint, tmp_path / "stem", dtype=torch.float32, depth=depth)
    assert str(refused.value) == f"{checkpoint.name}: no stem of depth {depth}, because {why}; choose depth {near}"
    assert not (tmp_path / "stem").exists()


def test_towers_that_differ(tmp_path: Path) -> None:
    teacher, other, wide, llava = (
        open_checkpoint(tiny_families.build(name, tmp_path / str(number), **options))
        for number, (name, options) in enumerate(
            [
                ("gemma3", {"tower_seed": 1}),
                ("gemma3", {"tower_seed": 2, "hidden_size": 32}),
                ("gemma3", {"tower_seed": 1, "hidden_size": 32, "dtype": "bfloat16"}),
                ("llava", {}),
            ]
        )
    )
    assert why_no_stem(teacher.config, other.config) is None
    assert same_tower(teacher, other, "float32") == (False, "the weights of the vision towers differ in float32")
    # a copy saved in bfloat16: the same tower in bfloat16 only
    assert same_tower(teacher, wide, "bfloat16")[0] is True and same_tower(teacher, wide, "float32")[0] is False
    assert (
        why_no_stem(teacher.config, llava.config) == "the student is of another architecture than the teacher, gemma3"
    )


def test_the_same_bytes_each_time_and_a_damaged_file(cases: dict[str, Any], tmp_path: Path) -> None:
    checkpoint = cases["llava"].checkpoint
    info = extract_stem(checkpoint, tmp_path / "stem", dtype=torch.bfloat16, lm_head=True)
    assert info.has_lm_head and info.dtype == "bfloat16"
    again = extract_stem(checkpoint, tmp_path / "again", dtype=torch.float32)
    assert again.path.read_bytes() == extracted_bytes(checkpoint, dtype=torch.float32)
    head = open_stem(info.path).take_head()
    assert head is not None
    torch.testing.assert_close(head.weight_VD, checkpoint.lm_head(torch.bfloat16).weight_VD, rtol=0, atol=0)
    content = info.path.read_bytes()
    damaged = content.replace(rb"\"model_type\":\"llava\"", rb"\"model_type\":\"blip2\"")
    assert damaged != content
    info.path.write_bytes(damaged)
    with pytest.raises(InputError, match=r"config in the metadata is unusable .*blip2.*; extract the stem again"):
        read_stem_info(info.path)
