"""Jobs from a file, from keywords and from both are what the command line makes of them."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

import alignkd
from alignkd.pipeline.config.recipes import load_stage

SECTIONS: dict[str, dict[str, Any]] = {
    "data": {"conversations": "data.json", "images": "images"},
    "teacher": {"checkpoint": "teacher", "batch": 3},
    "student": {"checkpoint": "student"},
    "store": {"path": "store", "profile": "compact", "shard_size": 32},
    "train": {"output": "out", "steps": 5, "losses": {"logit": 0.5}},
}


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(SECTIONS))
    return path


def decided_by(job: alignkd.DumpJob) -> dict[str, Any]:
    """All but how the run is watched, which has no equality."""
    return {name: value for name, value in vars(job).items() if name != "control"}


def chosen(*names: str) -> dict[str, dict[str, Any]]:
    return {name: SECTIONS[name] for name in names}


def test_a_file_and_keywords_make_the_same_job(config: Path) -> None:
    dump = alignkd.dump_job(config)
    assert decided_by(dump) == decided_by(load_stage(config, "dump", None).dump_job())
    assert isinstance(dump, alignkd.DumpJob) and dump.store.attention == "sqrt_u8"
    assert decided_by(alignkd.dump_job(**chosen("data", "teacher", "store"))) == decided_by(dump)
    train = alignkd.train_job(config)
    assert train == load_stage(config, "train", None).train_job() and isinstance(train, alignkd.TrainJob)
    by_keywords = alignkd.train_job(**chosen("data", "student", "store", "train"))
    assert (by_keywords.train, by_keywords.store) == (train.train, train.store)


def test_keywords_replace_keys_of_a_file(config: Path) -> None:
    job = alignkd.dump_job(str(config), store={"path": Path("other"), "logits": {"p": 0.5}})
    assert (str(job.store.path), job.store.shard_size, job.store.attention) == ("other", 32, "sqrt_u8")
    assert (job.store.logits.p, job.store.logits.max_entries) == (0.5, 1024)
    # a profile is the file's base, so another one replaces every codec that follows from it
    assert alignkd.dump_job(config, store={"profile": "stem"}).store.attention == "stem"
    assert alignkd.train_job(config, train={"seed": 7}).train.seed == 7


def test_one_stage_of_a_recipe(tmp_path: Path) -> None:
    stages = [
        {"name": "first", "store": {"path": "one"}, "train": {"output": "out-1", "steps": 1}},
        {"name": "second", "store": {"path": "two"}, "train": {"output": "out-2", "steps": 2}},
    ]
    path = tmp_path / "recipe.yaml"
    path.write_text(json.dumps({**chosen("data", "teacher", "student"), "stages": stages}))
    assert str(alignkd.dump_job(path, stage="second").store.path) == "two"
    assert alignkd.train_job(path, stage="second", train={"steps": 9}).train.num_steps == 9
    with pytest.raises(alignkd.AlignkdError, match="has stages first, second"):
        alignkd.train_job(path)


def test_problems_are_one_line(config: Path) -> None:
    with pytest.raises(alignkd.errors.InputError, match=r"dump_job: 2 problems: store: section is missing.*batch"):
        alignkd.dump_job(data=SECTIONS["data"], teacher={"checkpoint": "t", "batch": "three"})
    with pytest.raises(alignkd.errors.InputError, match=r"run.yaml: 1 problem: .*stepz"):
        alignkd.train_job(config, train={"stepz": 3})
    with pytest.raises(TypeError, match="there is no section 'training', expected data, student, store, train"):
        alignkd.train_job(config, training={"steps": 3})


def test_arguments_of_a_wrong_kind_are_named(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="section data is 'x', expected a mapping of keys"):
        alignkd.dump_job(data="x")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="stage is 'second', but there is no configuration file"):
        alignkd.dump_job(stage="second", **SECTIONS)
    with pytest.raises(TypeError, match="path is None, expected the path or URL of a store"):
        alignkd.open_store(None)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"job is 'run.yaml', expected a DumpJob; alignkd.dump_job makes one"):
        alignkd.dump("run.yaml")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"job is 3, expected a TrainJob; alignkd.train_job makes one"):
        alignkd.train(3)  # type: ignore[arg-type]
    with pytest.raises(
        alignkd.AlignkdError, match=r"none.tar: cannot be read \(No such file or directory\); check the"
    ):
        alignkd.webdataset_decoder(tmp_path / "none.tar")
