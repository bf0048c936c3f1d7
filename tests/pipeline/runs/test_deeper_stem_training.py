"""Training from a stem with whole layers is training from the stored attention of these layers."""

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from stem_runs import FROM_STEM, assert_same_losses, dumped, opened, trained

from alignkd.pipeline.config.run_config import load_run_config
from alignkd.storage.schema.targets.attention import NAMES
from alignkd.student_train.errors import TrainError
from alignkd.student_train.run.plan import open_samples
from alignkd.student_train.run.student import build_student
from alignkd.student_train.trainer import train
from alignkd.teacher_dump.attachments import make_attachments, remarks_on_stem
from alignkd.vlm.errors import InputError
from alignkd.vlm.stem.extract import extracted_bytes
from alignkd.vlm.stem.file import STEM_FILE, read_stem_info

WriteConfig = Callable[..., Path]


def of_layers(layers: list[int], codec: str, **more: Any) -> dict[str, Any]:
    """`store` with the attention of these layers, all else exact or from the stem."""
    rest = FROM_STEM if codec == "stem" else {}
    return {**rest, "attention": {"layers": layers, "codec": codec, **more}}


def depth_in_training(config: Path) -> int:
    """Depth of the stem that a training has loaded."""
    job = load_run_config(config, "train").train_job()
    checkpoint = job.open_student()
    student = build_student(job, checkpoint, open_samples(job, checkpoint).reader)
    assert student.stem is not None
    return student.stem.stem.depth


@pytest.mark.parametrize(
    ("layers", "pairs", "losses"),
    [
        ([0, 1], "tqv", {"attention_layers": {0: 0, 1: 1}}),
        ([0, 2], "all", {"attention_layers": {1: [0, 2]}, "attention_form": "kl", "attention_heads": "grouped"}),
    ],
    ids=["depth 2", "depth 3"],
)
def test_the_same_losses_as_from_stored_layers(
    write: WriteConfig, layers: list[int], pairs: str, losses: dict[str, Any]
) -> None:
    """Samples with no, one and several images in one batch; `vision_top` takes the first layer in the same pass."""
    stored = write("stored", store=of_layers(layers, "float32", pairs=pairs), train={"losses": losses})
    assert dumped(stored).manifest.from_stem == ()
    stem = write("stem", store=of_layers(layers, "stem", pairs=pairs), train={"losses": losses})
    reader = dumped(stem)
    kinds = ("tqv", "vqv") if pairs == "all" else ("tqv",)
    assert reader.manifest.from_stem == ("vision_top", "vision_all", *(NAMES[kind] for kind in kinds))
    assert read_stem_info(reader.attachment(STEM_FILE)).depth == layers[-1] + 1 == depth_in_training(stem)
    expected = trained(stored)
    assert_same_losses(trained(stem), expected)
    first = write("first", store={}, train={"losses": {**losses, "attention_layers": None}, "steps": 1})
    dumped(first)
    assert trained(first)[0]["attention"] != pytest.approx(expected[0]["attention"], rel=1e-3)


def test_a_store_of_the_first_layer_with_a_deeper_stem(write: WriteConfig, golden: Path, tmp_path: Path) -> None:
    """Attention of the first layer is stored, and a later training takes that of layer 2 from the stem."""
    carrying = write("carrying", store={"stem": {"depth": 3}})
    reader = dumped(carrying)
    assert reader.manifest.from_stem == () and reader.manifest.codecs.attention == "float32"
    assert read_stem_info(reader.attachment(STEM_FILE)).depth == 3
    path = {"path": str(reader.path)}
    losses = {"losses": {"attention_layers": {0: 0, 2: 2}}}
    later = write("later", store=path, train={"targets": {"attention": "stem"}, **losses})
    stored = write("stored", store=of_layers([0, 2], "float32"), train=losses)
    dumped(stored)
    assert_same_losses(trained(later), trained(stored))
    # deeper layers of the file are not loaded where the losses do not need them
    shallow = write("shallow", store=path, train={"targets": {"attention": "stem"}})
    assert (depth_in_training(shallow), depth_in_training(later)) == (1, 3)
    plain = write("plain", store=path)
    assert_same_losses(trained(shallow), trained(plain))


@pytest.mark.parametrize("weights", ["sharpness", "surprise"])
def test_weights_of_rows_are_those_of_stored_attention(write: WriteConfig, weights: str) -> None:
    chosen = {"attention_layers": {0: 0, 1: 2}, "attention_row_weights": weights}
    found = []
    for codec in ("stem", "float32"):
        name = f"{weights}-{codec}"
        config = write(name, store=of_layers([0, 2], codec), train={"losses": chosen})
        dumped(config)
        found.append(trained(config))
    # weights multiply the rounding of the losses, which are sums of 1e-5
    assert_same_losses(*found, relative=5e-6)
    losses = {"attention_layers": {0: 0, 1: 2}}
    plain = write("plain", store=of_layers([0, 2], "float32"), train={"losses": losses, "steps": 1})
    dumped(plain)
    assert trained(plain)[0]["attention"] != pytest.approx(found[0][0]["attention"], rel=1e-4)


def test_depths_that_do_not_fit_are_refused(write: WriteConfig, golden: Path) -> None:
    shallow = write("shallow", store={**of_layers([0, 2], "stem"), "stem": {"depth": 2}})
    with pytest.raises(InputError) as refused:
        dumped(shallow)
    assert str(refused.value) == (
        "store.stem.depth is 2, but the targets with the codec stem (attention, vision_top, vision_all) need the "
        "attention of layer 2; set store.stem.depth to 3 or more, or leave it out"
    )
    deep = write("deep", store={"stem": {"depth": 5}})
    with pytest.raises(InputError, match=r"teacher: no stem of depth 5, because layer 4 is not .* 4; choose depth 4$"):
        dumped(deep)
    # of the attention only
    stored = write("stored", store={**of_layers([0, 2], "float32"), "vision_top": "stem"})
    assert read_stem_info(dumped(stored).attachment(STEM_FILE)).depth == 1


def test_layers_below_the_depth_only(write: WriteConfig) -> None:
    stem = write("stem", store=FROM_STEM, train={"losses": {"attention_layers": {0: 1}}})
    dumped(stem)
    with pytest.raises(TrainError, match=r"the teacher's layer 1, but .* layers 0 only; .* deeper stem"):
        train(load_run_config(stem, "train").train_job())


@pytest.mark.parametrize(("quantization", "depth", "lines"), [("int8", 2, 1), ("int8", 1, 0), ("none", 2, 0)])
def test_a_quantised_teachers_whole_layers_are_those_of_the_full_teacher(
    write: WriteConfig, golden: Path, quantization: str, depth: int, lines: int
) -> None:
    """One line of the dump tells so; the stem has the same bytes with and without quantisation."""
    config = write(
        "stem", store={"stem": {"depth": depth}}, teacher={"quantization": quantization, "dtype": "bfloat16"}
    )
    job, teacher = load_run_config(config, "dump").dump_job(), opened(golden, "teacher")
    remarks = list(remarks_on_stem(job, teacher))
    assert len(remarks) == lines and all("\n" not in remark and "full teacher" in remark for remark in remarks)
    written = make_attachments(job, teacher)[STEM_FILE]
    assert written == extracted_bytes(teacher, dtype=job.teacher.torch_dtype, depth=depth)


@pytest.mark.skipif(importlib.util.find_spec("bitsandbytes") is None, reason="the extra [quantized] is not installed")
def test_training_from_a_quantised_teacher_compares_with_the_full_one_by_the_stem_only(write: WriteConfig) -> None:
    """Stored attention of layer 1 has the quantisation error, that of layer 0 and the stem's have none."""
    losses = {"losses": {"attention_layers": {0: 0, 1: 1}, "logit": 0}}
    found = {}
    for name, codec, quantization in (
        ("full", "float32", "none"),
        ("stem", "stem", "int8"),
        ("stored", "float32", "int8"),
    ):
        config = write(name, store=of_layers([0, 1], codec), train=losses, teacher={"quantization": quantization})
        dumped(config)
        found[name] = trained(config)
    for line, expected in zip(found["stem"], found["full"], strict=True):
        for term in ("loss", "attention", "attention_0", "attention_1", "vision_all", "vision_top"):
            assert line[term] == pytest.approx(expected[term], rel=1e-6), (line["step"], term)
    stored, full = found["stored"][0], found["full"][0]
    assert stored["attention_0"] == pytest.approx(full["attention_0"], rel=1e-6)
    error = abs(stored["attention_1"] / full["attention_1"] - 1)
    assert 1e-5 < error < 0.2
