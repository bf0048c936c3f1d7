"""The YAML file of one student, as a user would write it, for both phases."""

import json
from collections.abc import Mapping
from typing import Any

from alignkd.disk.whole_file import write_whole
from alignkd.pipeline.config.run_config import read_yaml
from alignkd.pipeline.config.yaml_core import dump_yaml
from alignkd.pipeline.demo.folder import DemoFolder, StudentPaths, check_same
from alignkd.pipeline.demo.recipes import SUPERVISED, MoreScenes, Recipe
from alignkd.pipeline.demo.settings import TEMPLATE, DemoSettings
from alignkd.pipeline.demo.world.dataset import DatasetFiles
from alignkd.storage.schema.manifest_checks import flatten
from alignkd.student_train.objective.terms import TERMS

TRAIN_KEYS = (
    "micro_batch learning_rate projector_learning_rate adapter_learning_rate adapter_init warmup_ratio "
    "weight_decay checkpoint_every data_workers"
).split()


def write_run_config(folder: DemoFolder, settings: DemoSettings, recipe: Recipe, student: StudentPaths) -> None:
    """Write `student.config`, a file for `alignkd dump`, `alignkd train` and `alignkd run`.

    Raises:
        InputError: the student was trained, and the file that is there has other settings.
    """
    config = run_config(folder, settings, recipe, student)
    if student.output.exists() and student.config.is_file():
        found = read_yaml(student.config)
        problem = f"{student.config}: its student was trained with other settings"
        check_same(problem, flatten(deciding(found)), flatten(deciding(config)))
    write_whole(student.config, f"# alignkd run {student.config.name}\n{dump_yaml(config)}")


def deciding(config: Mapping[str, Any]) -> dict[str, Any]:
    """The sections `store` and `train` of a `run_config`, without paths and without terms of weight 0.

    The values are those of JSON, so a configuration and what was read back from its file or from a log are equal.
    """
    train = {key: value for key, value in config["train"].items() if key != "output"}
    losses = {key: value for key, value in train["losses"].items() if value != 0}
    store = {key: value for key, value in config["store"].items() if key != "path"}
    found: dict[str, Any] = json.loads(json.dumps({"store": store, "train": {**train, "losses": losses}}))
    return found


def run_config(folder: DemoFolder, settings: DemoSettings, recipe: Recipe, student: StudentPaths) -> dict[str, Any]:
    """The sections of the file. Students of one seed start from the same weights and see the same batches."""
    data: Any = _data(folder.training_set)
    if (more := recipe.store.more) is not None:
        data = [{"name": "train", **data}, {"name": "more", **_data(folder.more_set(more))}]
    train = {key: getattr(settings, key) for key in TRAIN_KEYS} | dict(recipe.train)
    return {
        "data": data,
        "teacher": _teacher(folder, settings),
        "student": {"checkpoint": str(folder.fresh_student(student.seed))},
        "store": {
            "path": str(folder.store(recipe.store)),
            "backend": "zarr",
            **settings.store,
            **recipe.store.keys,
            "shard_size": settings.shard_size,
        },
        "train": {
            "output": str(student.output),
            "seed": student.seed,
            "steps": steps_of(recipe, settings),
            **{key: value for key, value in train.items() if value is not None},
            "losses": {**dict.fromkeys(TERMS, 0.0), SUPERVISED: 1.0, **recipe.losses},
        },
    }


def generation_config(folder: DemoFolder, settings: DemoSettings, more: MoreScenes) -> dict[str, Any]:
    """The sections of a file for `alignkd generate`: the teacher answers the questions about more scenes."""
    return {
        "data": _data(folder.asked_set(more)),
        "teacher": _teacher(folder, settings),
        "generate": {"output": str(folder.generated(more)), "answers": "all", "max_new_tokens": 16},
    }


def _data(data: DatasetFiles) -> dict[str, Any]:
    return {"conversations": str(data.conversations), "images": str(data.images), "template": TEMPLATE}


def _teacher(folder: DemoFolder, settings: DemoSettings) -> dict[str, Any]:
    return {"checkpoint": str(folder.teacher), "batch": settings.teacher_batch}


def steps_of(recipe: Recipe, settings: DemoSettings) -> int:
    """Optimiser steps of a row."""
    return round(recipe.steps * settings.steps)
