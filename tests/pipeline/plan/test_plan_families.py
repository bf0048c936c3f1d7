"""Plans for models of transformers: stores against real dumps, shapes against what the models compute."""

import io
import json
import math
import os
from collections.abc import Callable
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import family_fixtures
import numpy as np
import pytest
import tiny_data
import tiny_families
import torch
from chosen_families import chosen
from click.testing import CliRunner
from kept_bytes import saved_bytes
from teacher_batches import LiveBytes, load_of, stored_bytes
from torch import Tensor
from transformers import AutoConfig, AutoModelForImageTextToText

from alignkd.pipeline.cli import main
from alignkd.pipeline.config.run_config import RunConfig
from alignkd.pipeline.plan.disk.image_shape import measured_image, num_patches
from alignkd.pipeline.plan.make import make_plan, shapes_of_student
from alignkd.pipeline.plan.memory.host import PROCESS_BYTES
from alignkd.pipeline.plan.memory.loads import StudentLoad
from alignkd.pipeline.plan.memory.result import BESIDE_TRAINING
from alignkd.pipeline.plan.memory.shapes import ModelShapes
from alignkd.pipeline.plan.memory.student import layer_bytes
from alignkd.pipeline.plan.memory.teacher import BATCHES_IN_FLIGHT, teacher_memory
from alignkd.pipeline.plan.memory.teacher_host import PREPARED_WINDOWS
from alignkd.pipeline.plan.memory.trained import trained_parameters
from alignkd.pipeline.plan.result import PlanOptions
from alignkd.storage.read.store import StoreReader
from alignkd.student_train.objective.adapters import Adapters
from alignkd.student_train.objective.objective import DistilledStudent
from alignkd.student_train.objective.settings import LossConfig
from alignkd.teacher_dump.dump import dump
from alignkd.teacher_dump.preparation import PreparationThreads
from alignkd.teacher_dump.settings.store import StoreConfig
from alignkd.teacher_dump.targets.capture import Capture
from alignkd.vlm.data.open import open_data
from alignkd.vlm.data.source import DataSet
from alignkd.vlm.data.turns import Turn
from alignkd.vlm.errors import InputError
from alignkd.vlm.families.family import Checkpoint
from alignkd.vlm.families.huggingface.model.parts import layers_of, tower_of
from alignkd.vlm.families.open import open_checkpoint

TESTED = ("qwen3_vl", "gemma3", "smolvlm")
# exact and compact, then what else the rows depend on
CHOICES: dict[str, dict[str, Any]] = {
    "exact": {"profile": "exact"},
    "compact": {"profile": "compact"},
    "stem": {"profile": "stem"},
    "text to text, hidden": {"attention_pairs": "tqt", "logits": {"kind": "hidden"}},
    "images inside": {"attention_pairs": "vqv", "inputs": "embed", "vision_all": "none", "logits": {"kind": "none"}},
}
# the decoder receives more of the tower than the embeddings
NO_STEM = {("qwen3_vl", "stem")}
# families whose towers add a token for the class to each tile
CLASS_TOKEN = ("llava", "llava_next", "internvl")
_LAYOUTS = [(choice, backend) for choice in CHOICES for backend in ("zarr", "webdataset")]
_COMBINED = [(name, *rest) for name in TESTED for rest in _LAYOUTS if (name, rest[0]) not in NO_STEM]
# each choice in each layout, with the families in turn; every combination with --all-families
STORES = chosen(_COMBINED, lambda one: TESTED[_LAYOUTS.index(one[1:]) % len(TESTED)] == one[0])
# each family in both dtypes and with both choices
ALIVE = chosen(
    [(name, *rest) for name in TESTED for rest in product(("exact", "compact"), ("float32", "bfloat16"))],
    lambda one: (one[1] == "exact") is (one[2] == "float32"),
)
MakeRun = Callable[..., RunConfig]


data, checkpoint = family_fixtures.data, family_fixtures.checkpoint


@pytest.fixture
def make_run(data: tiny_data.TinyData, checkpoint: Callable[..., Path], tmp_path: Path) -> MakeRun:
    """`make_run("gemma3", student=True, teacher={"window": 2}, **store)`."""

    def make(name: str, *, student: bool = False, teacher: dict[str, Any] | None = None, **store: Any) -> RunConfig:
        sections: dict[str, Any] = {
            "data": {"conversations": data.conversations, "images": data.images},
            "teacher": {"checkpoint": str(checkpoint(name)), "sanity": "off", **(teacher or {})},
            "store": {"path": tmp_path / "store", "shard_size": 4, **store},
        }
        if student:
            sections["student"] = {"checkpoint": str(checkpoint(name, seed=1, hidden_size=64))}
            sections["train"] = {"output": tmp_path / "out", "steps": 1, "micro_batch": 2, "preset": "paper"}
        return RunConfig.model_validate(sections)

    return make


@pytest.mark.parametrize(("name", "choice", "backend"), STORES)
def test_predicted_bytes_are_those_of_a_real_dump(
    make_run: MakeRun, tmp_path: Path, name: str, choice: str, backend: str
) -> None:
    run = make_run(name, backend=backend, **CHOICES[choice])
    dump(run.dump_job())
    store = tmp_path / "store"
    planned = make_plan(run, PlanOptions())
    actual = sum(file.stat().st_size for file in store.rglob("*") if file.is_file())
    assert planned.entries_source in ("measured on the existing store", "this kind of logits keeps no list of tokens")
    assert planned.store.total == pytest.approx(actual, rel=0.002)
    attached = sum(file.stat().st_size for file in (store / "attachments").rglob("*") if file.is_file())
    assert (store / "attachments" / "processor").is_dir()
    assert planned.store.by_target["attachments"] == pytest.approx(attached, abs=64)


def test_samples_are_counted_as_they_are_stored(make_run: MakeRun, tmp_path: Path) -> None:
    """Tokens of images, queries and lengths of each sample, against the records that a dump wrote."""
    run = make_run("qwen3_vl")
    dump(run.dump_job())
    rows, reader = make_plan(run, PlanOptions()).data.rows, StoreReader(tmp_path / "store")
    records = [reader[number] for number in range(len(reader))]
    assert rows.vision.tolist() == [len(record.vision_positions) for record in records]
    assert rows.images.tolist() == [record.num_images for record in records]
    assert rows.queries.tolist() == [len(record.tqv_query_positions) for record in records]
    assert rows.length.tolist() == rows.tokens.tolist() == [record.sequence_length for record in records]
    assert rows.supervised.tolist() == [len(record.supervised_positions) for record in records]
    assert len({count for record in records for count in record.tokens_of_image}) > 3


def patches_in_tower(opened: Checkpoint, example: Any) -> int:
    """Values of the input of the tower's first layer, by its width."""
    model = opened.load_model()
    tower = tower_of(model.model)  # type: ignore[attr-defined]
    assert tower is not None
    layers = next(module for module in tower.modules() if isinstance(module, torch.nn.ModuleList))
    seen: list[Tensor] = []

    def note(module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        seen.append(args[0] if args else kwargs["hidden_states"])

    layers[0].register_forward_pre_hook(note, with_kwargs=True)
    images = [{name: torch.from_numpy(np.array(values)) for name, values in example.images[0].items()}]
    with torch.no_grad():
        model.encode_images(images, [0])
    return sum(values.numel() // values.shape[-1] for values in seen)


@pytest.mark.parametrize("name", tiny_families.NINE)
def test_patches_are_those_that_the_tower_computes(name: str, checkpoint: Callable[..., Path]) -> None:
    opened = open_checkpoint(checkpoint(name))
    size, preparation = opened.size(), opened.preparation()
    measured = measured_image(preparation, size.tower.patch_size, (160, 120))
    file = tiny_data.drawn(160, 120, seed=0)
    turns = (Turn("human", "<image>\nWhat?"), Turn("gpt", "That."))
    example = preparation.build(turns, [png(file)])
    assert num_patches(example.images[0], size.tower.patch_size) == measured.patches
    tiles = math.prod(example.images[0]["pixel_values"].shape[:-3]) if name in CLASS_TOKEN else 0
    assert patches_in_tower(opened, example) == measured.patches + tiles
    assert measured.tokens == len(example.positions.vision_positions)
    assert measured.array_bytes == sum(values.nbytes for values in example.images[0].values())


def png(image: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", TESTED)
def test_a_layer_keeps_about_what_torch_keeps(name: str, dtype: str, checkpoint: Callable[..., Path]) -> None:
    folder, tokens, counted = checkpoint(name, hidden_size=256, heads=4), 192, {}
    size = open_checkpoint(folder, weights=False).size()
    for layers in (1, 3):
        config = AutoConfig.from_pretrained(folder)
        text = config.get_text_config(decoder=True)
        text.num_hidden_layers = layers
        if getattr(text, "layer_types", None):
            text.layer_types = text.layer_types[:1] * layers
        model = AutoModelForImageTextToText.from_config(config).to(getattr(torch, dtype))
        assert len(layers_of(model)) == layers
        embeddings = torch.randn(1, tokens, size.hidden_size).to(getattr(torch, dtype)).requires_grad_()
        counted[layers] = saved_bytes(model.get_decoder(), embeddings)
    assert layer_bytes(size, dtype) == pytest.approx((counted[3] - counted[1]) / 2 / tokens, rel=0.12)


@pytest.mark.parametrize(("name", "choice", "dtype"), ALIVE)
def test_the_plan_is_never_below_what_is_alive(
    name: str, choice: str, dtype: str, checkpoint: Callable[..., Path], data: tiny_data.TinyData
) -> None:
    opened = open_checkpoint(checkpoint(name, hidden_size=512, heads=8))
    preparation, size, settings = opened.preparation(), opened.size(), StoreConfig(path="store", profile=choice)
    file = open_data(DataSet(path=data.conversations, images=data.images))
    with PreparationThreads(preparation, data.images, 1) as threads:
        samples = threads.prepare([file[number] for number in range(len(file))])
    model = opened.load_model(dtype=getattr(torch, dtype))
    capture = Capture(model, settings)
    with LiveBytes([*model.parameters(), *model.buffers()]) as live:
        captured = capture(samples)
    stored = stored_bytes(captured)
    shapes = ModelShapes.of(size, measured_image(preparation, size.tower.patch_size, (64, 64)))
    load = load_of(samples, settings, dtype, stored, num_layers=model.config.num_layers)
    planned = teacher_memory(shapes, replace(load, tokens=len(samples) * load.longest))  # padded
    one_batch = planned.peak - planned.parts["weights"] - BATCHES_IN_FLIGHT * stored
    assert live.peak <= one_batch + stored <= 2 * live.peak, (live.peak, planned)


@pytest.mark.parametrize("name", TESTED)
def test_two_models_of_transformers_are_planned_together(make_run: MakeRun, name: str) -> None:
    run = make_run(name, student=True)
    plan = make_plan(run, PlanOptions())
    student = shapes_of_student(run)
    assert plan.student is not None and student is not None
    assert plan.teacher.parts["weights"] == plan_weights(run.teacher)
    assert set(plan.fits_by) == {"store", "teacher", "teacher_host", "student", "student_host"}
    assert 0 < plan.student.parts["activations"] < plan.student.peak
    # the towers have other weights, or the family has no stem at all
    assert plan.stem.usable is False and (plan.stem.sizes is None) is (name == "qwen3_vl")
    assert ("stem" in plan.profiles) is any("stem" in sizes for sizes in plan.choices.values()) is (name != "qwen3_vl")
    assert json.dumps(plan.to_json())
    assert run.student is not None and run.teacher is not None
    teacher, model = (open_checkpoint(section.checkpoint) for section in (run.teacher, run.student))
    adapters = Adapters(
        heads=(teacher.config.num_heads, model.config.num_heads),
        hidden_sizes=(teacher.config.hidden_size, model.config.hidden_size),
    )
    trained = DistilledStudent(model.load_model(), adapters, LossConfig(), None)
    load = StudentLoad(
        dtype="float32", micro_batch=1, length=1, supervised=1, queries=1, teacher_heads=teacher.config.num_heads,
        teacher_hidden=teacher.config.hidden_size, hidden_logits=False, head_chunk_mib=1, attention_chunk_bytes=1 << 20,
    )  # fmt: skip
    parameters = sum(parameter.numel() for parameter in trained.parameters() if parameter.requires_grad)
    assert trained_parameters(student, load) == parameters


def plan_weights(section: Any) -> int:
    """Bytes of the weight files' tensors in float32."""
    model = open_checkpoint(section.checkpoint).load_model()
    return sum(4 * parameter.numel() for parameter in model.parameters())


def test_prepared_windows_are_the_arrays_of_two_windows(make_run: MakeRun, data: tiny_data.TinyData) -> None:
    """With windows as large as a shard that holds the data; the plan adds three deviations to the mean."""
    run = make_run("qwen3_vl", shard_size=64)
    assert run.teacher is not None
    plan = make_plan(run, PlanOptions())
    preparation = open_checkpoint(run.teacher.checkpoint).preparation()
    file = open_data(DataSet(path=data.conversations, images=data.images))
    samples = [file[number] for number in range(len(file))]
    with PreparationThreads(preparation, data.images, 1) as threads:
        prepared = threads.prepare(samples)
    real = sum(values.nbytes for sample in prepared for image in sample.images for values in image.values())
    planned = plan.teacher.host_parts["image arrays of two windows"]
    assert PREPARED_WINDOWS * real <= planned <= 2.5 * PREPARED_WINDOWS * real


def test_a_smaller_window_is_advised_where_image_arrays_do_not_fit(make_run: MakeRun) -> None:
    run = make_run("qwen3_vl", shard_size=64)
    big = make_plan(run, PlanOptions())
    room = PROCESS_BYTES + BESIDE_TRAINING
    arrays = big.teacher.host - PROCESS_BYTES
    plan = make_plan(run, PlanOptions(host_memory=room + arrays // 2))
    assert not plan.fits_by["teacher_host"]
    (step,) = (step for step in plan.advice if step["for"] == "teacher_host")
    window = step["set"]["teacher.window"]
    smaller = make_run("qwen3_vl", shard_size=64, teacher={"window": window})
    fixed = make_plan(smaller, PlanOptions(host_memory=room + arrays // 2))
    assert window < 10 and fixed.fits_by["teacher_host"] and fixed.teacher.host == step["bytes"]
    hopeless = make_plan(run, PlanOptions(host_memory=1 << 30))
    assert any("with more memory" in step.get("say", "") for step in hopeless.advice if step["for"] == "teacher_host")


def test_without_data_the_tokens_of_an_image_are_given_or_measured(make_run: MakeRun) -> None:
    run = make_run("qwen3_vl")
    no_data = {"samples": 1000, "mean_tokens": 700.0}
    measured, given = make_plan(run, PlanOptions(**no_data)), make_plan(run, PlanOptions(**no_data, image_tokens=100))
    preparation = open_checkpoint(str(run.teacher.checkpoint)).preparation()  # type: ignore[union-attr]
    positions = preparation.tokenize((Turn("human", "<image>\nWhat?"), Turn("gpt", "That.")), [(640, 480)]).positions
    assert measured.data.mean("vision") == len(positions.vision_positions) != 100
    assert given.data.mean("vision") == 100 and given.data.mean("length") == given.data.mean("tokens") == 700
    assert given.data.mean("queries") == 700 - 100 - positions.vision_positions[0]
    assert "one image of 100 vision tokens" in given.notes[0]
    with pytest.raises(InputError, match="--image-tokens needs --samples"):
        make_plan(run, PlanOptions(image_tokens=100))


def test_a_missing_image_folder_and_a_stem_are_refused(make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run("qwen3_vl")
    bare = run.model_copy(update={"data": (run.data[0].model_copy(update={"images": tmp_path / "not there"}),)})
    with pytest.raises(InputError, match="is not a folder; set it, or give --samples"):
        make_plan(bare, PlanOptions())
    with pytest.raises(InputError, match=r"targets come from the teacher's stem, but .*store"):
        make_plan(make_run("qwen3_vl", profile="stem"), PlanOptions())
    with pytest.raises(InputError, match=r"store\.stem\.depth is 1, but this family has no stem"):
        make_plan(make_run("qwen3_vl", stem={"depth": 1}), PlanOptions())


def test_the_command_prints_a_plan(make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run("qwen3_vl", student=True)
    config = tmp_path / "run.json"
    config.write_text(run.model_dump_json(exclude_none=True))
    found = CliRunner().invoke(main, ["plan", os.fspath(config), "--gpu-memory", "24GiB", "--host-memory", "16GiB"])
    assert found.exit_code == 0, found.output
    assert "stem      none: " in found.stdout
    assert "image arrays of two windows" in found.stdout and "everything fits" in found.stdout
