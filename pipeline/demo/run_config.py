"""The YAML file of one student, as a user would write it, for both phases."""

from typing import Any

from alignkd.disk.whole_file import write_whole
from alignkd.pipeline.config.yaml_core import dump_yaml
from alignkd.pipeline.demo.folder import DemoFolder, StudentPaths
from alignkd.pipeline.demo.recipes import SUPERVISED, Recipe
from alignkd.pipeline.demo.settings import TEMPLATE, DemoSettings
from alignkd.student_train.objective.terms import TERMS

TRAIN_KEYS = (
    "micro_batch learning_rate projector_learning_rate adapter_learning_rate adapter_init warmup_ratio "
    "weight_decay checkpoint_every data_workers"
).split()


def write_run_config(folder: DemoFolder, settings: DemoSettings, recipe: Recipe, student: StudentPaths) -> None:
    """Write `student.config`, a file for `alignkd dump`, `alignkd train` and `alignkd run`."""
    text = dump_yaml(run_config(folder, settings, recipe, student))
    write_whole(student.config, f"# alignkd run {student.config.name}\n{text}")


def run_config(folder: DemoFolder, settings: DemoSettings, recipe: Recipe, student: StudentPaths) -> dict[str, Any]:
    """The sections of the file. Students of one seed start from the same weights and see the same batches."""
    data = folder.training_set
    train = {key: getattr(settings, key) for key in TRAIN_KEYS} | dict(recipe.train)
    return {
        "data": {"conversations": str(data.conversations), "images": str(data.images), "template": TEMPLATE},
        "teacher": {"checkpoint": str(folder.teacher), "batch": settings.teacher_batch},
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


def steps_of(recipe: Recipe, settings: DemoSettings) -> int:
    """Optimiser steps of a row."""
    return round(recipe.steps * settings.steps)
