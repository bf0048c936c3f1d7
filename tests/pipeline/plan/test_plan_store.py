"""The predicted size of a store against what real dumps write, and where its figures come from."""

import json
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from alignkd.pipeline.config.run_config import DataConfig, RunConfig
from alignkd.pipeline.demo.world.dataset import DatasetFiles, write_dataset
from alignkd.pipeline.plan.disk.samples import assumed_samples
from alignkd.pipeline.plan.make import make_plan
from alignkd.pipeline.plan.report import plan_lines
from alignkd.pipeline.plan.result import Plan, PlanOptions
from alignkd.storage import StoreReader
from alignkd.student_train.config import TrainConfig
from alignkd.student_train.objective.settings import LossConfig
from alignkd.student_train.run.checks.unused import unused_of_store
from alignkd.teacher_dump.dump import dump
from alignkd.teacher_dump.settings.store import StoreConfig
from alignkd.teacher_dump.settings.teacher import TeacherConfig

ASSETS = Path(__file__).parents[3] / "pipeline" / "demo" / "assets"
TEACHER = ASSETS / "teacher"
MakeRun = Callable[..., RunConfig]
PART = re.compile(r"(?:uses|,) ((?:attention of layers? )?[\w, ]+) \(([\d.,]+) KiB per sample\)")
# every codec and kind once; all in both layouts
CHOICES: dict[str, dict[str, Any]] = {
    "exact": {"profile": "exact"},
    "compact": {"profile": "compact"},
    "stem": {"profile": "stem"},
    "stem for attention, hidden": {"attention": "stem", "logits": {"kind": "hidden"}},
    "deeper stem": {"attention": {"layers": [0, 2], "codec": "stem"}, "vision_all": "stem", "vision_top": "stem"},
    "deeper stem for later": {"stem": {"depth": 3}},
    "defaults": {},
    "full": {"logits": {"kind": "full"}, "attention": "float32", "vision_all": "none"},
    "text to text": {"attention_pairs": "tqt", "logits": {"kind": "sampled"}},
    "layers": {"attention": {"layers": [0, 1], "pairs": "all", "heads": {"groups": 2}}},
    "layers in bytes": {"profile": "compact", "attention": {"layers": "0%-100%", "heads": "mean"}},
    "layers and the first": {"attention": {"layers": [1], "heads": "mean", "first_layer": "sqrt_u8"}},
    "layers of the stem": {"profile": "stem", "attention": {"layers": [0], "pairs": "all"}},
    "images inside": {"attention_pairs": "vqv", "attention": "sqrt_u8", "logits": {"kind": "none"}, "inputs": "embed"},
    "cosines": {"logits": {"kind": "none"}, "vision_text_affinity": "int8_unit"},
    "small": {
        "attention": "none",
        "vision_top": "int8_channel",
        "vision_all": "int8_channel",
        "logits": {"kind": "hidden", "dtype": "int8_group"},
        "inputs": "embed",
    },
}


@pytest.fixture(scope="module")
def demo_data(tmp_path_factory: pytest.TempPathFactory) -> DatasetFiles:
    """48 pictures with up to six questions each, some text-only conversations among them."""
    return write_dataset(tmp_path_factory.mktemp("data"), num_scenes=48, pool="train", seed=3, questions_per_scene=6)


@pytest.fixture
def make_run(demo_data: DatasetFiles, tmp_path: Path) -> MakeRun:
    """`make_run(**store settings)`: a dump of the demo's data by its teacher; the longest samples are dropped."""

    def make(**store: Any) -> RunConfig:
        return RunConfig(
            data=DataConfig(conversations=demo_data.conversations, images=demo_data.images, max_tokens=105),
            teacher=TeacherConfig(checkpoint=str(TEACHER), sanity="off"),
            store=StoreConfig(**{"path": tmp_path / "store", "shard_size": 16, **store}),
        )

    return make


def written_bytes(store: Path) -> int:
    """All files of a store."""
    return sum(file.stat().st_size for file in store.rglob("*") if file.is_file())


@pytest.mark.parametrize("backend", ["zarr", "webdataset"])
@pytest.mark.parametrize(
    "kept",
    [
        {"vision_states": "bfloat16", "state_norms": "float32"},
        {"vision_states": "int8_group", "vision_relations": "float16"},
        {"vision_relations": "int8_unit", "relations_of": "projector"},
    ],
)
def test_bytes_of_states_and_relations(make_run: MakeRun, tmp_path: Path, kept: dict[str, str], backend: str) -> None:
    run = make_run(backend=backend, logits={"kind": "none"}, **kept)
    plan = make_plan(run, PlanOptions())
    dump(run.dump_job())
    assert plan.store.total == pytest.approx(written_bytes(tmp_path / "store"), rel=0.002)
    names = [key for key in kept if key != "relations_of"]
    if "relations_of" in kept:
        names = ["projector_relations"]
    lines = [line.strip() for line in plan_lines(plan)]
    for name in names:
        assert plan.store.by_target[name] > 0
        assert any(line.startswith(name) for line in lines), name
    without = make_plan(make_run(backend=backend, logits={"kind": "none"}), PlanOptions())
    assert plan.store.by_target.keys() == {*without.store.by_target, *names}
    added = sum(plan.store.by_target[name] for name in names)
    assert plan.store.of_targets == pytest.approx(without.store.of_targets + added, rel=0.01)


@pytest.mark.parametrize("backend", ["zarr", "webdataset"])
@pytest.mark.parametrize("remove", ["focus", "image"])
def test_bytes_and_hours_of_a_counterfactual_pass(make_run: MakeRun, tmp_path: Path, remove: str, backend: str) -> None:
    """A mass of 1 stores the same number of tokens at every position, so nothing is assumed."""
    run = make_run(
        backend=backend, logits={"kind": "none"}, counterfactual={"remove": remove, "mass": 1.0, "entries": 9}
    )
    plan = make_plan(run, PlanOptions())
    dump(run.dump_job())
    assert plan.store.total == pytest.approx(written_bytes(tmp_path / "store"), rel=0.002)
    without = make_plan(make_run(backend=backend, logits={"kind": "none"}), PlanOptions())
    assert plan.store.by_target["counterfactual"] > 0 and "counterfactual" not in without.store.by_target
    for name, phases in plan.hours.items():
        assert 1.3 < phases["dump"] / without.hours[name]["dump"] < 2.5
    assert any(line.strip().startswith("counterfactual") for line in plan_lines(plan))


@pytest.mark.parametrize("backend", ["zarr", "webdataset"])
@pytest.mark.parametrize("choice", CHOICES)
def test_predicted_bytes_are_those_of_a_real_dump(make_run: MakeRun, tmp_path: Path, choice: str, backend: str) -> None:
    run = make_run(backend=backend, **CHOICES[choice])
    plan = make_plan(run, PlanOptions())
    dumped = dump(run.dump_job())
    store = tmp_path / "store"
    actual = written_bytes(store)
    assert 0 < len(dumped.quarantined) < dumped.num_samples  # what is not stored is not counted either
    assert round(plan.data.num_records) == dumped.num_records and plan.data.exact
    assert plan.store.total == pytest.approx(actual, rel=0.05)
    # with the kept tokens per position known there is nothing left to guess
    known = make_plan(run, PlanOptions()) if plan.entries_source.startswith("assumed") else plan
    assert known.entries_source in ("measured on the existing store", "this kind of logits keeps no list of tokens")
    assert known.store.total == pytest.approx(actual, rel=0.002)
    assert sum(known.store.by_target.values()) == known.to_json()["store_bytes"] == known.store.total
    attachments = sum(file.stat().st_size for file in (store / "attachments").iterdir())
    assert known.store.by_target["attachments"] == pytest.approx(attachments, abs=64)


def test_a_part_of_the_data_says_what_all_of_it_takes(make_run: MakeRun) -> None:
    run = make_run(profile="compact", shard_size=4)
    every, part = make_plan(run, PlanOptions()), make_plan(run, PlanOptions(count=24))
    assert not part.data.exact and part.data.counted == 24
    assert part.store.total == pytest.approx(every.store.total, rel=0.1)


def test_each_codec_is_priced_as_if_it_were_chosen(make_run: MakeRun) -> None:
    plan = make_plan(make_run(), PlanOptions())
    for target, name in [("attention", "sqrt_u8"), ("vision_all", "int8_channel"), ("vision_top", "from_all")]:
        chosen = make_plan(make_run(**{target: name}), PlanOptions())
        assert plan.choices[target][name] == chosen.store.by_target[target]
    for target in ("attention", "vision_all", "vision_top"):
        assert plan.choices[target]["stem"] == 0
    chosen = make_plan(make_run(logits={"kind": "hidden"}), PlanOptions())
    assert plan.choices["logits"]["hidden"] == chosen.store.by_target["logits"]
    for profile, size in plan.profiles.items():
        assert size == pytest.approx(make_plan(make_run(profile=profile), PlanOptions()).store.total, rel=1e-3)


def test_each_codec_of_chosen_layers_is_priced_as_if_it_were_chosen(make_run: MakeRun) -> None:
    layers = {"layers": [0, 1], "pairs": "all", "heads": "mean"}
    plan = make_plan(make_run(attention=layers), PlanOptions())
    for codec in ("float32", "sqrt_u8"):
        chosen = make_plan(make_run(attention={**layers, "codec": codec}), PlanOptions())
        assert plan.choices["attention"][codec] == chosen.store.by_target["attention"] > 0
    assert plan.choices["attention"]["stem"] == 0
    for profile in ("exact", "compact"):
        chosen = make_plan(make_run(profile=profile, attention=layers), PlanOptions())
        assert plan.profiles[profile] == pytest.approx(chosen.store.total, rel=1e-3)


def test_no_weights_are_read(make_run: MakeRun, tmp_path: Path) -> None:
    shutil.copytree(TEACHER, tmp_path / "bare")
    (tmp_path / "bare" / "model.safetensors").unlink()
    run = make_run(logits={"kind": "hidden"})
    assert run.teacher is not None
    bare = run.model_copy(update={"teacher": run.teacher.model_copy(update={"checkpoint": str(tmp_path / "bare")})})
    assert make_plan(bare, PlanOptions()).store == make_plan(run, PlanOptions()).store


def test_a_probe_measures_what_is_otherwise_assumed(make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run(logits={"kind": "nucleus"})
    assumed, measured = make_plan(run, PlanOptions()), make_plan(run, PlanOptions(probe=24))
    assert assumed.entries_source.startswith("assumed") and measured.entries_source == "measured by the probe"
    probe = measured.probe
    assert probe is not None and probe.samples_per_second > 0 and 0 < probe.samples <= 24
    dump(run.dump_job())
    found = make_plan(run, PlanOptions())
    assert measured.entries_per_position == pytest.approx(found.entries_per_position, rel=0.1)
    assert measured.store.total == pytest.approx(written_bytes(tmp_path / "store"), rel=0.02)
    assert make_plan(run, PlanOptions(entries=11)).entries_per_position == 11


def test_without_data_a_mean_is_enough() -> None:
    data = assumed_samples(1000, 250.4, shard_size=64, vision_tokens=144, supervised_share=0.5, plain=False)
    assert (data.num_records, data.mean("length"), data.mean("images")) == (1000, 250, 1)
    assert data.mean("queries") == 250 - 144 - 36 and data.mean("supervised") == 35 and not data.exact
    assert data.longest(512) == 512 and data.most("queries", 512) == 512 - 144 - 36


def test_disk_is_what_is_free_where_the_store_goes(make_run: MakeRun, tmp_path: Path) -> None:
    plan = make_plan(make_run(path=tmp_path / "not" / "there"), PlanOptions())
    free = os.statvfs(tmp_path)
    assert plan.disk == pytest.approx(free.f_bavail * free.f_frsize, rel=0.05)
    assert plan.fits_by["store"] and not replace(plan, disk=plan.store.total - 1).fits_by["store"]


def check_advice(plan: Plan) -> dict[str, Any]:
    (step,) = plan.advice
    return dict(step)


def test_a_store_that_does_not_fit_gets_advice_that_does(make_run: MakeRun) -> None:
    run = make_run(attention="float32", vision_all="float32", logits={"kind": "full"})
    big = make_plan(run, PlanOptions())
    step = check_advice(make_plan(run, PlanOptions(disk=big.profiles["compact"])))
    assert step["set"] == {"store.profile": "compact"} and step["bytes"] == big.profiles["compact"]
    hopeless = check_advice(make_plan(run, PlanOptions(disk=100_000)))
    assert hopeless["set"] == {} and "the disk has room for" in hopeless["say"]


@pytest.mark.parametrize("pairs", ["tqv", "vqv", "tqt"])
def test_samples_with_several_images_are_counted_too(demo_data: DatasetFiles, tmp_path: Path, pairs: str) -> None:
    entries = json.loads(demo_data.conversations.read_text())
    images = [entry["image"] for entry in entries if "image" in entry]
    turns = [{"from": "human", "value": "<image>\n<image>\nsame?"}, {"from": "gpt", "value": "no"}]
    doubled = [{"id": str(n), "image": images[n : n + 2], "conversations": turns} for n in range(0, 12, 2)]
    path = tmp_path / "several.json"
    path.write_text(json.dumps(doubled + entries[:5]))
    run = RunConfig(
        data=DataConfig(conversations=path, images=demo_data.images),
        teacher=TeacherConfig(checkpoint=str(TEACHER), sanity="off"),
        store=StoreConfig(path=tmp_path / "store", attention_pairs=pairs, inputs="embed"),
    )
    plan = make_plan(run, PlanOptions())
    dump(run.dump_job())
    assert plan.data.mean("images") > 1
    assert plan.store.total == pytest.approx(written_bytes(tmp_path / "store"), rel=0.005)


def test_a_list_of_data_sets_is_planned_as_it_is_dumped(demo_data: DatasetFiles, tmp_path: Path) -> None:
    entries = json.loads(demo_data.conversations.read_text())
    paths = [tmp_path / "one.json", tmp_path / "two.jsonl"]
    paths[0].write_text(json.dumps(entries[:20]))
    paths[1].write_text("".join(json.dumps(entry) + "\n" for entry in entries[20:]))
    data = [{"conversations": str(path), "images": str(demo_data.images)} for path in paths]
    share = {"share": 0.5}
    data = [data[0], {**data[1], **share}]
    run = RunConfig.model_validate(
        {
            "data": data,
            "teacher": {"checkpoint": str(TEACHER), "sanity": "off"},
            "store": {"path": str(tmp_path / "store"), "inputs": "embed", "shard_size": 16},
        }
    )
    plan = make_plan(run, PlanOptions())
    dump(run.dump_job())
    found = StoreReader(tmp_path / "store")
    assert plan.store.total == pytest.approx(written_bytes(tmp_path / "store"), rel=0.005)
    one, two = plan.to_json()["data"]["sources"]
    assert [one["name"], two["name"]] == found.sources and two["share"] == 0.5
    counts = np.bincount(found.source_of)
    assert [one["num_samples"], two["num_samples"]] == counts.tolist() == [one["counted"], two["counted"]]
    assert two["mean_tokens"] == pytest.approx(found.sequence_lengths[found.source_of == 1].mean())
    assert f"          two: {counts[1]} samples, share 0.5; of {counts[1]} counted" in "\n".join(plan_lines(plan))


@pytest.mark.parametrize(
    ("store", "losses", "expected"),
    [
        ({"attention": {"layers": [0, 1, 3], "pairs": "all", "codec": "sqrt_u8"}}, {"attention_layers": {1: [1]}},
         ["attention of layers 0, 3"]),
        ({"attention": {"layers": [0, 1]}}, {"attention_layers": "0%-100%"}, []),
        ({"attention": {"layers": [0, 1]}}, {}, ["attention of layer 1"]),
        ({}, {}, []),
        # the 16 embeddings are taken from those of all vision tokens
        ({"profile": "exact"}, {"vision_all": 0.0}, []),
        ({"profile": "exact"}, {"vision_all": 0.0, "vision_top": 0.0}, ["vision_top", "vision_all"]),
        ({"counterfactual": {"mass": 1.0, "entries": 4}}, {"attention": 0.0, "logit": 0.0},
         ["attention of layer 0", "logits", "counterfactual"]),
        ({"counterfactual": {}, "attention": "stem", "logits": {"kind": "topk"}}, {"effect": 1.0}, []),
    ],
)  # fmt: skip
def test_stored_targets_without_a_loss(
    make_run: MakeRun, tmp_path: Path, store: dict[str, Any], losses: dict[str, Any], expected: list[str]
) -> None:
    """The plan's line, by arithmetic, and that of a training from the dumped store."""
    run = make_run(shard_size=1000, **store)
    train = TrainConfig(output=tmp_path / "out", steps=1, losses=LossConfig(**losses))
    planned = make_plan(run.model_copy(update={"train": train}), PlanOptions(count=10_000)).unused
    dump(run.dump_job())
    of_store = unused_of_store(StoreReader(tmp_path / "store"), train)
    if not expected:
        assert planned is None and of_store is None
        return
    assert planned is not None and of_store is not None
    for line in (planned, of_store):
        assert [part[1] for part in PART.finditer(line)] == expected
    sizes = [[float(part[2].replace(",", "")) for part in PART.finditer(line)] for line in (planned, of_store)]
    # the plan counts files, whose arrays are padded
    assert sizes[0] == pytest.approx(sizes[1], rel=0.06, abs=1.5) and all(size > 0 for one in sizes for size in one)


def test_bytes_of_unused_layers_by_hand(make_run: MakeRun, tmp_path: Path) -> None:
    """Two of three stored layers, eight heads in two bytes, over all records."""
    dump(make_run(shard_size=1000, attention={"layers": [0, 1, 3], "codec": "float16"}).dump_job())
    reader = StoreReader(tmp_path / "store")
    pairs = [len(record.tqv_query_positions) * len(record.vision_positions) for record in reader]
    train = TrainConfig(output=tmp_path / "out", steps=1, losses=LossConfig(attention_layers={0: (1,)}))
    line = unused_of_store(reader, train)
    assert line is not None and (found := PART.search(line)) is not None
    assert float(found[2]) == pytest.approx(2 * 8 * 2 * sum(pairs) / len(pairs) / 1024, abs=0.051)
