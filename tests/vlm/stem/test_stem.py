"""A stem's targets are the live teacher's, op for op: every projector, grouped heads, padding, several images."""

import json
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor

from alignkd.vlm.attention.focus import vision_top_index
from alignkd.vlm.data.images import read_images
from alignkd.vlm.data.open import load_samples
from alignkd.vlm.families.family import Vision
from alignkd.vlm.families.mobilevlm.model.config import VLMConfig, load_config
from alignkd.vlm.families.mobilevlm.model.mobilevlm import MobileVLM
from alignkd.vlm.families.mobilevlm.model.sizes import family_config
from alignkd.vlm.families.mobilevlm.weights.checkpoint import load_model, load_preparation
from alignkd.vlm.families.mobilevlm.weights.loading import new_model
from alignkd.vlm.families.stem import EmbeddingTable
from alignkd.vlm.inputs.batch import SequenceBatch, collate_sequences, pad_positions, true_places
from alignkd.vlm.inputs.examples import Example
from alignkd.vlm.inputs.position_map import AttentionPairs
from alignkd.vlm.stem.mobilevlm import MobileVLMDesign
from alignkd.vlm.stem.stem import EMBEDDING_KEY, TeacherStem, stem_shapes

V1 = ("ft-0", "ft-1", "ft-2", "ft-3")  # ft-2 is text-only
MIB = 1 << 20
WHO = ("teacher", "student")


@pytest.fixture(scope="module")
def teacher(golden: Path) -> MobileVLM:
    return load_model(golden / "teacher", vision_config=golden / "clip")


@pytest.fixture(scope="module")
def student(golden: Path) -> MobileVLM:
    return load_model(golden / "student", vision_config=golden / "clip")


def stem_of(model: MobileVLM, *, lm_head: bool = False, depth: int = 1) -> TeacherStem:
    state, shapes = model.state_dict(), stem_shapes(model.config, lm_head=lm_head, depth=depth)
    assert {key: tuple(state[key].shape) for key in shapes} == shapes
    return TeacherStem(model.config, {key: state[key].clone() for key in shapes}, depth=depth)


def examples_of(golden: Path, images: Path, names: Sequence[str], template: Any = "v1") -> list[Example]:
    builder = load_preparation(golden / "teacher", template=template, vision_config=golden / "clip")
    samples = {sample.id: sample for sample in load_samples(golden / f"{template}.json")}
    return [builder.build(samples[name].turns, read_images(images, samples[name].images)) for name in names]


@torch.no_grad()
def tower_features(model: MobileVLM, batch: SequenceBatch) -> Tensor:
    """[I, patches, D_vision] of a model's tower."""
    features = model.encode_images(batch.images, features=True).features
    assert isinstance(features, Tensor)
    return features


def blocks_of(examples: Sequence[Example], pairs: AttentionPairs) -> tuple[list[int], Tensor, Tensor]:
    """Sample, rows and columns of every attention block of a batch."""
    found = [
        (row, *block) for row, example in enumerate(examples) for block in example.positions.attention_blocks(pairs)
    ]
    samples, rows, cols = zip(*found, strict=True)
    return list(samples), pad_positions(rows)[0], pad_positions(cols)[0]


@torch.no_grad()
def live_and_stem(
    teacher: MobileVLM, stem: TeacherStem, features: Tensor | None, batch: SequenceBatch
) -> tuple[tuple[Vision | None, Tensor], tuple[Tensor | None, Tensor]]:
    """Vision embeddings and first layer's input by the live teacher, and by the stem from features of a tower."""
    live_vision = teacher.encode_images(batch.images) if batch.images else None
    vision = None if features is None else stem.vision_embeddings(features)
    text = stem.table.rows(batch.input_ids_BL)
    return (live_vision, teacher.embed(batch, live_vision)), (vision, stem.embed(text, batch, vision))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("names", [V1, ("ft-2",), ("ft-1", "ft-2")], ids=["mixed", "text only", "one image"])
@pytest.mark.parametrize("pairs", ["tqv", "tqt", "vqv"])
def test_targets_equal_the_live_teachers(
    golden: Path, golden_images: Path, names: Sequence[str], pairs: AttentionPairs, dtype: torch.dtype
) -> None:
    """From the STUDENT's tower features, in padded batches."""
    teacher, student = (load_model(golden / who, vision_config=golden / "clip", dtype=dtype) for who in WHO)
    examples = examples_of(golden, golden_images, names)
    batch = collate_sequences(examples)
    with torch.no_grad():
        features = tower_features(student, batch) if batch.images else None
    stem = stem_of(teacher)
    (live_vision, live_embeds), (vision, embeds) = live_and_stem(teacher, stem, features, batch)
    torch.testing.assert_close(embeds, live_embeds, rtol=0, atol=0)
    if live_vision is None:
        assert vision is None
        return
    torch.testing.assert_close(vision, live_vision.embeddings_PD, rtol=0, atol=0)
    samples, rows, cols = blocks_of(examples, pairs)
    for chunk_bytes in (None, 1 << 12):
        with torch.no_grad():
            live = teacher.first_layer_attention(live_embeds[samples], rows, cols, chunk_bytes=chunk_bytes)
        found = stem.first_layer_attention(embeds[samples], rows, cols, chunk_bytes=chunk_bytes)
        torch.testing.assert_close(found, live, rtol=1e-6, atol=0)


@pytest.mark.parametrize("name", ["ft-0", "ft-1", "ft-3", "pt-0", "pt-1", "pt-2"])
def test_targets_equal_the_original_implementation(
    golden: Path, golden_images: Path, teacher: MobileVLM, student: MobileVLM, name: str
) -> None:
    expected = load_file(golden / f"{name}.safetensors")
    examples = examples_of(golden, golden_images, [name], "plain" if name.startswith("pt") else "v1")
    batch, stem = collate_sequences(examples), stem_of(teacher)
    vision = stem.vision_embeddings(tower_features(student, batch))
    embeds = stem.embed(stem.table.rows(batch.input_ids_BL), batch, vision)
    _, rows, cols = blocks_of(examples, "tqv")
    attention_HQP = stem.first_layer_attention(embeds, rows, cols)[0]
    torch.testing.assert_close(vision, expected["teacher.vision_embeddings"], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(attention_HQP, expected["teacher.layer0_tqv_attention"], rtol=1e-4, atol=1e-7)
    assert torch.equal(vision_top_index(attention_HQP), vision_top_index(expected["teacher.layer0_tqv_attention"]))


@pytest.mark.parametrize(
    "changes",
    [
        {"num_key_value_heads": 2},
        {"num_key_value_heads": 1, "attention_bias": True, "head_dim": 24},
        {"mm_projector_type": "ldpnet"},
        {"mm_projector_type": "linear"},
        {"mm_projector_type": "mlp2x_gelu", "rope_theta": 5e5},
        {"rope_scaling": {"type": "linear", "factor": 2.0}},
    ],
    ids=str,
)
def test_other_shapes_of_teachers(golden: Path, tmp_path: Path, changes: dict[str, Any]) -> None:
    """Grouped-query heads, biases, projectors, rotary settings; two images in the first sample, one in the second."""
    raw = json.loads((golden / "student/config.json").read_text()) | changes
    (tmp_path / "config.json").write_text(json.dumps(raw))
    config = load_config(tmp_path, vision_config=golden / "clip")
    teacher = new_model(config, seed=0).eval()
    batch = random_batch(config, images=[2, 1, 0])
    features, stem = tower_features(teacher, batch), stem_of(teacher)
    (live_vision, live_embeds), (vision, embeds) = live_and_stem(teacher, stem, features, batch)
    torch.testing.assert_close(vision, live_vision.embeddings_PD, rtol=0, atol=0)
    torch.testing.assert_close(embeds, live_embeds, rtol=0, atol=0)
    rows = torch.arange(7).repeat(3, 1) + batch.input_ids_BL.shape[1] - 7
    cols = torch.arange(11).repeat(3, 1)
    with torch.no_grad():
        live = teacher.first_layer_attention(live_embeds, rows, cols)
    assert live.shape[1] == config.num_heads and live.std() > 0
    torch.testing.assert_close(stem.first_layer_attention(embeds, rows, cols), live, rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    "changes",
    [{}, {"num_key_value_heads": 1, "attention_bias": True, "mlp_bias": True, "head_dim": 24}],
    ids=["plain", "grouped heads and biases"],
)
@pytest.mark.parametrize("depth", [1, 2, 3, 5])
def test_attention_of_every_layer(golden: Path, tmp_path: Path, depth: int, changes: dict[str, Any]) -> None:
    """A batch of two, one and no image with padding; every subset of layers runs no further than its last one."""
    raw = json.loads((golden / "student/config.json").read_text()) | {"num_hidden_layers": 5} | changes
    (tmp_path / "config.json").write_text(json.dumps(raw))
    teacher = new_model(load_config(tmp_path, vision_config=golden / "clip"), seed=0).eval()
    batch, stem = random_batch(teacher.config, images=[2, 1, 0]), stem_of(teacher, depth=depth)
    stem.train()  # as a part of a model in training
    with teacher.watched_layers(range(5)) as live, torch.no_grad():
        teacher.hidden_states(batch, teacher.encode_images(batch.images))
    vision, text = stem.vision(tower_features(teacher, batch)), stem.table.rows(batch.input_ids_BL)
    every = torch.arange(batch.input_ids_BL.shape[1]).expand_as(batch.input_ids_BL)
    calls: list[int] = []
    for number, layer in enumerate(stem.model.layers):
        layer.register_forward_hook(lambda *_, number=number: calls.append(number))
    for layers in ([depth - 1], [0], range(depth)):
        calls.clear()
        found = stem.attention_layers(batch, text, vision, layers)
        assert found.keys() == set(layers) and calls == list(range(max(layers)))
        for number, layer in found.items():
            expected = live[number].attention(every, every)
            assert layer.num_samples == 3 and expected.std() > 0
            torch.testing.assert_close(layer.attention(every, every), expected, rtol=1e-6, atol=1e-9)
            assert not layer.row_inputs(every).query_BHRd.requires_grad
    distinct = [layer.attention(every, every) for layer in found.values()]
    assert all(not torch.equal(one, other) for one, other in pairwise(distinct))


def random_batch(config: VLMConfig, images: Sequence[int]) -> SequenceBatch:
    generator = torch.Generator().manual_seed(1)
    length = 12 + max(images) * config.vision_tokens
    mask = torch.zeros(len(images), length, dtype=torch.bool)
    for row, number in enumerate(images):
        mask[row, 3 : 3 + number * config.vision_tokens] = True
    ids = torch.randint(1, config.vocab_size, mask.shape, generator=generator).masked_fill(mask, 0)
    side = int(config.vision.image_size)
    return SequenceBatch(
        input_ids_BL=ids,
        labels_BL=ids.clone(),
        vision_mask_BL=mask,
        vision_places_P=true_places(mask),
        lengths_B=torch.full((len(images),), length),
        images=tuple(
            {"pixel_values": pixels} for pixels in torch.randn(sum(images), 3, side, side, generator=generator)
        ),
        tokens_of_image=(config.vision_tokens,) * sum(images),
        image_samples_I=torch.repeat_interleave(torch.arange(len(images)), torch.tensor(images)),
    )


def test_logits_of_hidden_states(golden: Path, golden_images: Path, teacher: MobileVLM) -> None:
    """As a store keeps them (after the final norm), and before it."""
    stem, (example,) = stem_of(teacher, lm_head=True), examples_of(golden, golden_images, ["ft-1"])
    batch = collate_sequences([example])
    before: list[Tensor] = []
    hook = teacher.model.norm.register_forward_pre_hook(lambda _, inputs: before.append(inputs[0]))
    with torch.no_grad():
        hidden = teacher.hidden_states(batch, teacher.encode_images(batch.images))[0]
        logits = teacher.lm_head(hidden)
    hook.remove()
    torch.testing.assert_close(stem.logits(hidden), logits, rtol=0, atol=0)
    torch.testing.assert_close(stem.logits(before[0][0], normed=False), logits, rtol=0, atol=0)


def test_nothing_in_a_stem_can_be_trained_or_cast(teacher: MobileVLM) -> None:
    stem = stem_of(teacher, lm_head=True, depth=2)
    assert not list(stem.parameters()) and not stem.state_dict()
    owned = {key for key, _ in stem.named_buffers() if not key.startswith("model.rotary_emb.")}
    assert owned == stem_shapes(teacher.config, lm_head=True, depth=2).keys() - {EMBEDDING_KEY}
    assert not stem.vision_embeddings(torch.zeros(1, 576, 32)).requires_grad
    outer = torch.nn.ModuleDict({"stem": stem})
    assert not list(outer.parameters()) and not outer.state_dict()


@given(st.lists(st.integers(0, 30), min_size=6, max_size=6))
def test_rows_of_a_batch_are_the_tables(ids: list[int]) -> None:
    weight_VD = torch.arange(31 * 3, dtype=torch.float32).view(31, 3)
    ids_BL = torch.tensor(ids).view(2, 3)
    rows = EmbeddingTable(weight_VD).rows(ids_BL)
    assert len(rows.rows_UD) == len(set(ids))  # only these travel
    assert torch.equal(rows.rows_UD[rows.index_BL], weight_VD[ids_BL])


def test_sizes_at_the_real_shapes() -> None:
    """7B in bfloat16: projector 42 MB, W_q and W_k 67 MB, lm_head and embeddings 262 MB each."""
    config = family_config("mtgv/MobileVLM_V2-7B")
    found = MobileVLMDesign(config).sizes(torch.bfloat16, lm_head=True)
    shapes = {key: int(np.prod(shape)) * 2 for key, shape in stem_shapes(config, lm_head=True).items()}
    of = {part: sum(size for key, size in shapes.items() if part in key) for part in ("projector", "q_proj", "k_proj")}
    assert 41.9e6 < of["projector"] < 42.2e6 and of["q_proj"] + of["k_proj"] == 2 * 2 * 4096 * 4096
    assert found.device == sum(of.values()) + 2 * 4096
    assert found.host == 2 * 32000 * 4096 and found.lm_head == found.host + 2 * 4096
    assert found.total == sum(shapes.values()) and found.device + found.host < 0.4e9
    without = MobileVLMDesign(config).sizes(torch.bfloat16, lm_head=False)
    assert (without.lm_head, without.device, without.host) == (0, found.device, found.host)
    assert without.device < 0.45 * 1024 * MIB
    # 4 D^2 + 3 D I + 2 D parameters of a layer of LLaMA 7B
    layer = 2 * (4 * 4096**2 + 3 * 4096 * 11008 + 2 * 4096)
    for depth in (2, 3):
        deeper = MobileVLMDesign(config, depth).sizes(torch.bfloat16, lm_head=False)
        assert (deeper.device, deeper.host) == (without.device + (depth - 1) * layer, without.host)
