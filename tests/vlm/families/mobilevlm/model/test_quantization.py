"""A quantised teacher: which layers, what it costs, and what stays exact. bitsandbytes runs on the CPU here."""

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from alignkd.storage.places import load_manifest
from alignkd.teacher_dump.dump import dump
from alignkd.teacher_dump.job import DumpJob
from alignkd.teacher_dump.settings.store import StoreConfig
from alignkd.teacher_dump.settings.teacher import TeacherConfig
from alignkd.vlm.data.images import read_images
from alignkd.vlm.data.open import load_samples
from alignkd.vlm.data.source import DataSet
from alignkd.vlm.errors import InputError
from alignkd.vlm.families.mobilevlm.model.config import load_config
from alignkd.vlm.families.mobilevlm.model.mobilevlm import MobileVLM
from alignkd.vlm.families.mobilevlm.model.quantization import FULL_PRECISION, quantizable
from alignkd.vlm.families.mobilevlm.weights.checkpoint import load_model, load_preparation
from alignkd.vlm.families.mobilevlm.weights.saving import save_model
from alignkd.vlm.inputs.batch import SequenceBatch, collate_sequences
from alignkd.vlm.weights.bitsandbytes import quantized_bytes
from alignkd.vlm.weights.files import read_weights

KINDS = ["int8", "nf4"]
needs_bitsandbytes = pytest.mark.skipif(
    importlib.util.find_spec("bitsandbytes") is None, reason="the extra [quantized] is not installed"
)


@pytest.fixture(scope="module")
def batch(golden: Path, golden_images: Path) -> SequenceBatch:
    """The golden fine-tuning samples that have an image."""
    builder = load_preparation(golden / "teacher", template="v1", vision_config=golden / "clip")
    samples = [sample for sample in load_samples(golden / "v1.json") if sample.images]
    return collate_sequences(
        [builder.build(sample.turns, read_images(golden_images, sample.images)) for sample in samples]
    )


def outputs(model: MobileVLM, batch: SequenceBatch) -> dict[str, Tensor]:
    """Every kind of target that phase 1 captures."""
    with torch.no_grad():
        vision = model.encode_images(batch.images)
        embeds = model.embed(batch, vision)
        rows = torch.arange(embeds.shape[1])[None].expand(len(embeds), -1)
        return {
            "vision": vision.embeddings_PD,
            "attention": model.first_layer_attention(embeds, rows, rows),
            "logits": model(batch).float(),
        }


def relative(error: Tensor, reference: Tensor) -> float:
    return float(error.norm() / reference.norm())


def test_the_decoder_is_quantised_and_nothing_else(golden: Path) -> None:
    with torch.device("meta"):
        model = MobileVLM(load_config(golden / "teacher", vision_config=golden / "clip"))
    names = {name for name, _ in quantizable(model)}
    assert dict(model.named_modules()).keys() - names >= FULL_PRECISION
    expected = {
        f"model.layers.{layer}.{block}.{name}_proj"
        for layer in range(4)
        for block, names_in_it in (("self_attn", "qkvo"), ("mlp", ("gate", "up", "down")))
        for name in names_in_it
    }
    assert names == expected - FULL_PRECISION


@needs_bitsandbytes
@pytest.mark.parametrize("kind", KINDS)
def test_attention_and_vision_targets_are_exactly_those_of_the_full_teacher(
    golden: Path, batch: SequenceBatch, kind: Any
) -> None:
    dtype = torch.bfloat16
    full = load_model(golden / "teacher", vision_config=golden / "clip", dtype=dtype)
    small = load_model(golden / "teacher", vision_config=golden / "clip", dtype=dtype, quantization=kind)
    expected, got = outputs(full, batch), outputs(small, batch)
    assert torch.equal(got["vision"], expected["vision"])
    assert torch.equal(got["attention"], expected["attention"])
    error = relative(got["logits"] - expected["logits"], expected["logits"])
    assert 1e-4 < error < {"int8": 0.03, "nf4": 0.3}[kind], error
    parameters = dict(small.named_parameters())
    changed = {key for key in parameters if not parameters[key].is_floating_point()}
    assert changed == {f"{name}.weight" for name, _ in quantizable(full)}
    assert {parameters[key].dtype for key in parameters.keys() - changed} == {dtype}


@needs_bitsandbytes
def test_nf4_equals_a_full_model_with_the_rounded_weights(golden: Path, batch: SequenceBatch) -> None:
    import bitsandbytes.functional as bnb

    # In evaluation mode some CPUs multiply in bfloat16, whatever the dtype; without dropout the modes are the same.
    small = load_model(golden / "teacher", vision_config=golden / "clip", quantization="nf4").train()
    twin = load_model(golden / "teacher", vision_config=golden / "clip")
    for _, linear in quantizable(twin):
        with torch.no_grad():
            linear.weight.copy_(bnb.dequantize_4bit(*bnb.quantize_4bit(linear.weight, quant_type="nf4", blocksize=64)))
    expected, got = outputs(twin, batch)["logits"], outputs(small, batch)["logits"]
    assert relative(got - expected, expected) < 1e-5


@needs_bitsandbytes
@pytest.mark.parametrize("kind", KINDS)
def test_the_stated_bytes_are_those_of_the_quantised_weights(golden: Path, kind: Any) -> None:
    full = load_model(golden / "teacher", vision_config=golden / "clip")
    small = load_model(golden / "teacher", vision_config=golden / "clip", quantization=kind)
    for name, linear in quantizable(full):
        weight: Any = small.get_submodule(name).weight
        scales = weight.SCB if kind == "int8" else weight.quant_state.absmax
        assert weight.nbytes + scales.nbytes == quantized_bytes(linear, kind), name
    odd = nn.Linear(13, 5)
    assert (quantized_bytes(odd, "int8"), quantized_bytes(odd, "nf4")) == (65 + 5 * 4, 33 + 2 * 4)


@needs_bitsandbytes
def test_a_quantised_model_is_never_saved(golden: Path, tmp_path: Path) -> None:
    model = load_model(golden / "teacher", vision_config=golden / "clip", quantization="int8")
    with pytest.raises(AssertionError, match="never saved"):
        save_model(model, tmp_path, tokenizer_from=golden / "teacher")


@needs_bitsandbytes
def test_the_choice_is_in_the_manifest_and_cannot_be_changed_within_a_store(
    golden: Path, golden_images: Path, tmp_path: Path
) -> None:
    def run(quantization: Any) -> None:
        teacher = TeacherConfig(
            checkpoint=str(golden / "teacher"), vision_config=golden / "clip", quantization=quantization
        )
        store = StoreConfig(path=tmp_path / "store", shard_size=2)
        data = (DataSet(path=golden / "v1.json", images=golden_images),)
        dump(DumpJob(data=data, template="v1", max_tokens=None, teacher=teacher, store=store))

    run("nf4")
    assert load_manifest(tmp_path / "store").fingerprint["dtype"] == "float32+nf4"
    with pytest.raises(ValueError, match=r"float32\+nf4") as error:
        run("none")
    assert "\n" not in str(error.value)
    assert TeacherConfig(checkpoint="a", dtype="bfloat16").precision == "bfloat16"


def test_without_bitsandbytes_it_is_one_line(golden: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)  # what Python itself takes for "not installed"
    with pytest.raises(InputError, match=r"quantization 'nf4' needs bitsandbytes.*alignkd\[quantized\]") as error:
        load_model(golden / "teacher", vision_config=golden / "clip", quantization="nf4")
    assert "\n" not in str(error.value)
    loaded = load_model(golden / "teacher", vision_config=golden / "clip").state_dict()
    assert loaded.keys() == read_weights(golden / "teacher").keys()


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what happens without a GPU")
def test_a_gpu_that_is_not_there_is_one_line(golden: Path) -> None:
    teacher = TeacherConfig(checkpoint="any", device="cuda", quantization="nf4")
    with pytest.raises(InputError, match="device 'cuda' cannot be used"):
        _ = teacher.torch_device
    with pytest.raises(InputError, match="device 'cuda' cannot be used"):
        load_model(golden / "teacher", vision_config=golden / "clip", device="cuda", quantization="nf4")
