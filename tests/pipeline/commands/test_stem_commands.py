"""`alignkd stem`: extract, show and size; its targets against those of a store that the command line dumped."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result

from alignkd.pipeline.commands.stem import stem
from alignkd.storage import StoreReader
from alignkd.storage.record.encoded import error_bound
from alignkd.storage.record.record import as_float32
from alignkd.vlm.attention.focus import vision_top_index
from alignkd.vlm.data.images import read_images
from alignkd.vlm.data.open import load_samples
from alignkd.vlm.families.mobilevlm.weights.checkpoint import load_model, load_preparation
from alignkd.vlm.inputs.batch import collate_sequences, pad_positions
from alignkd.vlm.stem.checks import check_same_tower, check_stem_of_teacher
from alignkd.vlm.stem.file import open_stem, read_stem_info

Alignkd = Callable[..., "subprocess.CompletedProcess[str]"]
WriteConfig = Callable[..., Path]
CODECS: dict[str, dict[str, Any]] = {
    "float32": {},
    "compact": {"attention": "sqrt_u8", "vision_all": "int8_channel", "vision_top": "from_all"},
}


def run(*arguments: object) -> Result:
    return CliRunner().invoke(stem, [str(argument) for argument in arguments])


@pytest.mark.parametrize("codecs", CODECS)
def test_an_extracted_stem_gives_what_a_dumped_store_holds(
    alignkd_here: Alignkd, write_config: WriteConfig, golden: Path, golden_images: Path, tmp_path: Path, codecs: str
) -> None:
    """From the student's features: float32 to 1e-6, other codecs within the bound that each states."""
    config = write_config(store={**CODECS[codecs], "logits": {"kind": "hidden", "dtype": "float32"}})
    dumped = alignkd_here("dump", config)
    assert dumped.returncode == 0, dumped.stderr
    done = run("extract", config, "--out", tmp_path / "stem.safetensors", "--lm-head")
    assert done.exit_code == 0, done.output
    reader, teacher = StoreReader(tmp_path / "store"), open_stem(tmp_path / "stem.safetensors")
    info = read_stem_info(tmp_path / "stem.safetensors")
    student = load_model(golden / "student", vision_config=golden / "clip")
    check_stem_of_teacher(info, reader.manifest.fingerprint, str(reader.path))
    check_same_tower(info, student)

    builder = load_preparation(golden / "student", template="v1", vision_config=golden / "clip")
    samples = {sample.id: sample for sample in load_samples(golden / "v1.json")}
    compared = 0
    for place in range(len(reader)):
        record = reader[place]
        sample = samples[record.id]
        example = builder.build(sample.turns, read_images(golden_images, sample.images))
        if not example.images:
            continue
        batch = collate_sequences([example])
        with torch.no_grad():
            features = student.encode_images(batch.images, features=True).features
        assert isinstance(features, torch.Tensor)
        vision = teacher.vision_embeddings(features)
        embeds = teacher.embed(teacher.table.rows(batch.input_ids_BL), batch, vision)
        positions = example.positions
        rows, cols = (pad_positions([p])[0] for p in (positions.tqv_query_positions, positions.vision_positions))
        attention_HQP = teacher.first_layer_attention(embeds, rows, cols)[0]
        assert record.vision_top_index is not None and record.vision_embeddings is not None
        index = vision_top_index(attention_HQP)
        np.testing.assert_array_equal(record.vision_top_index, index.numpy())
        top = record.vision_top_embeddings
        for stored, found in (
            (record.attention, attention_HQP.transpose(0, 1)[None]),
            (record.vision_embeddings[0], vision),
            (top, vision[index]),
        ):
            assert stored is not None
            distance = np.abs(as_float32(stored) - found.numpy())
            assert (distance <= error_bound(stored) + 1e-6 * np.abs(found.numpy()).max()).all()
            compared += 1
    assert compared == 9
    head = torch.from_numpy(np.asarray(as_float32(reader[0].logits.states)))  # type: ignore[union-attr]
    assert teacher.logits(head).shape == (len(head), reader.manifest.shapes.vocab_size)


def test_extract_and_show_report_the_same(write_config: WriteConfig, tmp_path: Path) -> None:
    out = tmp_path / "stem.safetensors"
    done = run("extract", write_config(), "--out", out, "--dtype", "bfloat16", "--json")
    assert done.exit_code == 0, done.output
    reported, shown = json.loads(done.output), json.loads(run("show", out, "--json").output)
    assert reported == shown
    assert shown["dtype"] == "bfloat16" and not shown["lm_head"] and shown["device_bytes_of_lm_head"] == 0
    assert shown["disk_bytes"] == out.stat().st_size
    assert shown["device_bytes"] + shown["host_bytes"] == shown["memory_bytes"] < shown["disk_bytes"]
    assert shown["host_bytes"] == 2 * 512 * 128 and set(shown["tower"]) == {"float32", "bfloat16", "float16"}
    page = run("show", out).output
    assert "without lm_head" in page and shown["tower"]["bfloat16"] in page
    for name in ("on disk", "on the device", "on the host", "memory in total"):
        assert name in page


def test_size_of_the_family_needs_no_file() -> None:
    """At the 7B shape: 42 MB of projector and 67 MB of W_q and W_k on the device, under 0.4 GB in all."""
    found = json.loads(run("size", "mtgv/MobileVLM_V2-7B", "--json").output)
    assert 108e6 < found["device_bytes"] < 111e6 and found["host_bytes"] == 262_144_000
    assert found["disk_bytes"] == found["memory_bytes"] < 0.4e9
    with_head = json.loads(run("size", "mtgv/MobileVLM_V2-7B", "--lm-head", "--json").output)
    assert with_head["device_bytes_of_lm_head"] == 262_144_000 + 2 * 4096
    assert "on the device" in run("size", "mtgv/MobileVLM_V2-7B").output


def test_depths(write_config: WriteConfig, tmp_path: Path) -> None:
    """Given, or that of the store which the configuration describes; 405 MB for each layer at the 7B shape."""
    out = tmp_path / "stem.safetensors"
    of_layers = write_config("layers.yaml", store={"attention": {"layers": [0, 2], "codec": "stem"}})
    for config, given, depth in (
        (write_config(), (), 1),
        (write_config(), ("--depth", 2), 2),
        (of_layers, (), 3),
        (of_layers, ("--depth", 4), 4),
    ):
        done = run("extract", config, "--out", out, "--force", "--json", *given)
        assert done.exit_code == 0, done.output
        assert json.loads(done.output)["depth"] == depth == open_stem(out).depth
    assert "stem in float32, depth 4, without lm_head" in run("show", out).output
    sizes = [
        json.loads(run("size", "mtgv/MobileVLM_V2-7B", "--depth", depth, "--json").output)["device_bytes"]
        for depth in (1, 2, 3)
    ]
    assert sizes[1] - sizes[0] == sizes[2] - sizes[1] == 2 * (4 * 4096**2 + 3 * 4096 * 11008 + 2 * 4096)
    refused = run("size", "mtgv/MobileVLM_V2-7B", "--depth", 33)
    assert refused.exit_code == 1 and refused.output.strip().endswith("not among its 32; choose depth 32")


def test_errors_are_one_line(write_config: WriteConfig, tmp_path: Path) -> None:
    (tmp_path / "text").write_text("no stem")
    config = write_config()
    for arguments, message in (
        (("show", tmp_path / "absent"), "cannot be read as a stem"),
        (("show", tmp_path / "text"), "`alignkd stem extract` writes one"),
        (("extract", config, "--out", tmp_path / "text" / "stem"), "a part of the path is a file"),
        (
            ("extract", write_config("x.yaml", teacher={"checkpoint": "nowhere at all"}), "--out", tmp_path / "a"),
            "nowher",
        ),
        (
            ("extract", write_config("y.yaml", drop=("teacher",)), "--out", tmp_path / "a"),
            "teacher: section is missing",
        ),
        (("size", str(tmp_path / "absent")), "no such checkpoint folder"),
    ):
        done = run(*arguments)
        assert done.exit_code == 1 and message in done.output, (arguments, done.output)
        assert len(done.output.strip().splitlines()) == 1
    assert not (tmp_path / "a").exists()
